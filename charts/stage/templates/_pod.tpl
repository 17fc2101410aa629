{{- /* The pod of a stage: admitted where Pod Security `restricted` is enforced. */ -}}
{{- define "selfalign-stage.pod" -}}
restartPolicy: Never
serviceAccountName: {{ .Values.serviceAccountName }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds | int }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- if gt (.Values.nodes | int) 1 }}
subdomain: {{ .Release.Name }}
{{- end }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- range $name := list "priorityClassName" "runtimeClassName" }}
{{- with index $.Values $name }}
{{ $name }}: {{ . }}
{{- end }}
{{- end }}
{{- range $name := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" }}
{{- with index $.Values $name }}
{{ $name }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
containers:
  - name: stage
    image: {{ include "selfalign-stage.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command: ["selfalign", {{ include "selfalign-stage.stage" . | quote }}]
    args: ["--config", "/etc/selfalign/config.yaml"]
    env:
      {{- include "selfalign-stage.env" . | trim | nindent 6 }}
    envFrom:
      - configMapRef:
          name: {{ .Values.store.environmentConfigMap }}
          optional: true
      - secretRef:
          name: {{ .Values.store.credentialsSecret }}
          optional: true
    resources:
      {{- include "selfalign-stage.resources" . | nindent 6 }}
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities:
        drop: [ALL]
    terminationMessagePolicy: FallbackToLogsOnError
    volumeMounts:
      - name: config
        mountPath: /etc/selfalign
        readOnly: true
      - name: cache
        mountPath: /cache
      - name: scratch
        mountPath: /scratch
      - name: home
        mountPath: /home/selfalign
      - name: tmp
        mountPath: /tmp
      - name: shm
        mountPath: /dev/shm
      {{- if .Values.signing.secretName }}
      - name: signing
        mountPath: /signing
        readOnly: true
      {{- end }}
      {{- if .Values.models.source }}
      - name: models
        mountPath: {{ .Values.models.mountPath }}
        readOnly: true
      {{- end }}
volumes:
  - name: config
    downwardAPI:
      items:
        - path: config.yaml
          fieldRef:
            fieldPath: metadata.annotations['selfalign.io/config']
  - name: cache
    {{- include "selfalign-stage.volume" .Values.cache | nindent 4 }}
  - name: scratch
    {{- include "selfalign-stage.volume" .Values.scratch | nindent 4 }}
  - name: home
    emptyDir:
      sizeLimit: {{ .Values.temporarySizeLimit }}
  - name: tmp
    emptyDir:
      sizeLimit: {{ .Values.temporarySizeLimit }}
  - name: shm
    emptyDir:
      medium: Memory
      sizeLimit: {{ .Values.shmSizeLimit }}
  {{- with .Values.signing.secretName }}
  - name: signing
    secret:
      secretName: {{ . }}
      items: [{key: key, path: key}]
      defaultMode: 0440
  {{- end }}
  {{- with .Values.models.source }}
  - name: models
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "selfalign-stage.env" -}}
{{- $own := dict
  "SELFALIGN_LOG" "json"
  "SELFALIGN_CACHE_DIR" "/cache"
  "HOME" "/home/selfalign"
  "PYTHONNOUSERSITE" "1"
  "TMPDIR" "/scratch"
  "HF_HOME" "/cache/huggingface"
  "HF_HUB_OFFLINE" "1" }}
{{- range $name, $value := $own }}
{{- if not (hasKey $.Values.env $name) }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- if gt (.Values.nodes | int) 1 }}
- name: SELFALIGN_NUM_NODES
  value: {{ .Values.nodes | int | quote }}
- name: SELFALIGN_MASTER_PORT
  value: {{ .Values.masterPort | int | quote }}
- name: SELFALIGN_JOB_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['batch.kubernetes.io/job-name']
- name: SELFALIGN_MASTER_ADDR
  value: $(SELFALIGN_JOB_NAME)-0.{{ .Release.Name }}
{{- end }}
{{- if .Values.signing.secretName }}
- name: SELFALIGN_SIGNING_KEY
  value: /signing/key
{{- end }}
{{- range $name, $value := .Values.env }}
- name: {{ $name }}
  {{- if kindIs "map" $value }}
  {{- toYaml $value | nindent 2 }}
  {{- else }}
  value: {{ $value | toString | quote }}
  {{- end }}
{{- end }}
{{- end -}}
