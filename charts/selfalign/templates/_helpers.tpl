{{- define "selfalign.labels" -}}
app.kubernetes.io/name: selfalign
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: selfalign
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* What selects one component's pods: (list $ "controller"). */ -}}
{{- define "selfalign.selectorLabels" -}}
app.kubernetes.io/name: selfalign
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "selfalign.image" -}}
{{- $name := printf "%s/%s" .Values.image.registry .Values.image.name -}}
{{- if .Values.image.digest -}}
{{ $name }}@{{ .Values.image.digest }}
{{- else -}}
{{ $name }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* Pod and container settings that Pod Security `restricted` asks for. */ -}}
{{- define "selfalign.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "selfalign.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{- define "selfalign.pullSecrets" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end -}}
{{- end -}}

{{- /* Environment and writable places that controller and submission share. */ -}}
{{- define "selfalign.env" -}}
- name: SELFALIGN_LOG
  value: json
- name: SELFALIGN_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: SELFALIGN_CACHE_DIR
  value: /cache
- name: HOME
  value: /tmp
- name: PYTHONNOUSERSITE
  value: "1"
- name: PYTHONDONTWRITEBYTECODE
  value: "1"
{{- end -}}

{{- define "selfalign.volumeMounts" -}}
- name: config
  mountPath: /etc/selfalign
  readOnly: true
- name: cache
  mountPath: /cache
- name: tmp
  mountPath: /tmp
{{- end -}}

{{- define "selfalign.volumes" -}}
- name: config
  configMap:
    name: selfalign-config
- name: cache
  emptyDir:
    sizeLimit: 1Gi
- name: tmp
  emptyDir:
    sizeLimit: 256Mi
{{- end -}}

{{- /* The run configuration, with the targets of `notify` under the names of their variables. */ -}}
{{- define "selfalign.config" -}}
{{- $targets := .Values.config.notify | default list -}}
{{- range $index, $target := .Values.notify.targets -}}
{{- $name := printf "SELFALIGN_NOTIFY_URL_%d" $index -}}
{{- $format := $target.format | default "cloudevents" -}}
{{- $known := dict "url_variable" $name "format" $format -}}
{{- $targets = append $targets (merge $known (omit $target "secretRef" "format")) -}}
{{- end -}}
{{- $targets | empty | ternary .Values.config (merge (dict "notify" $targets) .Values.config) | toYaml -}}
{{- end -}}

{{- /* What reaches the store, as an egress rule. */ -}}
{{- define "selfalign.storeEgress" -}}
- ports:
    {{- range .Values.networkPolicy.storePorts }}
    - port: {{ . | int }}
      protocol: TCP
    {{- end }}
  {{- with .Values.networkPolicy.storeCidrs }}
  to:
    {{- range . }}
    - ipBlock:
        cidr: {{ . }}
    {{- end }}
  {{- end }}
{{- end -}}
