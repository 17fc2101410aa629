{{- /* What selects the pods, and never changes. */ -}}
{{- define "selfalign-serving.selectorLabels" -}}
app.kubernetes.io/name: selfalign-serving
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "selfalign-serving.labels" -}}
{{ include "selfalign-serving.selectorLabels" . }}
app.kubernetes.io/component: serving
app.kubernetes.io/part-of: selfalign
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* An image: (list $ .Values.fetch.image). */ -}}
{{- define "selfalign-serving.image" -}}
{{- $values := (index . 0).Values.image -}}
{{- $name := printf "%s/%s" $values.registry (index . 1).name -}}
{{- with (index . 1).digest -}}
{{ $name }}@{{ . }}
{{- else -}}
{{ $name }}:{{ $values.tag | default (index . 0).Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "selfalign-serving.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if .Values.gpus -}}
{{- $gpus := dict .Values.gpuResource (.Values.gpus | int) -}}
{{- $resources = mergeOverwrite $resources (dict "limits" $gpus "requests" $gpus) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "selfalign-serving.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{- /* What a container has where `env`, which is its own, does not set it. */ -}}
{{- define "selfalign-serving.env" -}}
{{- $own := dict
  "SELFALIGN_LOG" "json"
  "SELFALIGN_CACHE_DIR" "/cache"
  "HOME" "/home/selfalign"
  "PYTHONNOUSERSITE" "1"
  "TMPDIR" "/tmp"
  "HF_HOME" "/cache/huggingface"
  "HF_HUB_OFFLINE" "1" }}
{{- range $name, $value := $own }}
{{- if not (hasKey $.env $name) }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* A container that fetches and verifies, and writes /model; it ends in the list of variables. */ -}}
{{- define "selfalign-serving.reader" -}}
image: {{ include "selfalign-serving.image" (list . .Values.fetch.image) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
envFrom:
  - configMapRef:
      name: {{ .Values.store.environmentConfigMap }}
      optional: true
  - secretRef:
      name: {{ .Values.store.credentialsSecret }}
      optional: true
resources:
  {{- toYaml .Values.fetch.resources | nindent 2 }}
{{ include "selfalign-serving.containerSecurity" . }}
volumeMounts:
  - name: config
    mountPath: /etc/selfalign
    readOnly: true
  - name: model
    mountPath: /model
  - name: cache
    mountPath: /cache
  - name: home
    mountPath: /home/selfalign
  - name: tmp
    mountPath: /tmp
  {{- if .Values.verify.configMapName }}
  - name: verify
    mountPath: /verify
    readOnly: true
  {{- end }}
env:
  {{- include "selfalign-serving.env" (dict "env" dict) | trim | nindent 2 }}
  {{- if .Values.verify.configMapName }}
  - name: SELFALIGN_VERIFY_KEY
    value: /verify/key
  {{- end }}
{{- end -}}
