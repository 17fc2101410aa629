{{- define "selfalign-stage.stage" -}}
{{- required "stage: missing, expected the name of a stage; give the stage's file: -f jobs/<stage>.yaml" .Values.stage -}}
{{- end -}}

{{- /* What selects the pods of this release, and never changes. */ -}}
{{- define "selfalign-stage.selectorLabels" -}}
app.kubernetes.io/name: selfalign-stage
app.kubernetes.io/instance: {{ .Release.Name }}
selfalign.io/stage: {{ include "selfalign-stage.stage" . }}
{{- end -}}

{{- define "selfalign-stage.labels" -}}
{{ include "selfalign-stage.selectorLabels" . }}
app.kubernetes.io/component: stage
app.kubernetes.io/part-of: selfalign
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "selfalign-stage.image" -}}
{{- $image := .Values.image.name | default (include "selfalign-stage.stage" .) -}}
{{- $name := printf "%s/%s" .Values.image.registry $image -}}
{{- $released := empty .Values.image.tag | ternary (get .Values.image.digests $image) "" -}}
{{- with .Values.image.digest | default $released -}}
{{ $name }}@{{ . }}
{{- else -}}
{{ $name }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* How many pods complete the stage: its shards, the nodes of a training, or one. */ -}}
{{- define "selfalign-stage.completions" -}}
{{- if .Values.indexed -}}
{{- dig (include "selfalign-stage.stage" .) "num_shards" 1 (.Values.config | default dict) | int -}}
{{- else -}}
{{- .Values.nodes | int -}}
{{- end -}}
{{- end -}}

{{- define "selfalign-stage.parallelism" -}}
{{- $completions := include "selfalign-stage.completions" . | int -}}
{{- if and .Values.indexed .Values.maxParallelism -}}
{{- min $completions (.Values.maxParallelism | int) -}}
{{- else -}}
{{- $completions -}}
{{- end -}}
{{- end -}}

{{- define "selfalign-stage.resources" -}}
{{- $resources := deepCopy (.Values.resources | default dict) -}}
{{- if .Values.gpus -}}
{{- $gpus := dict .Values.gpuResource (.Values.gpus | int) -}}
{{- $resources = mergeOverwrite $resources (dict "limits" $gpus "requests" $gpus) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "selfalign-stage.volume" -}}
{{- if .source -}}
{{- toYaml .source -}}
{{- else -}}
emptyDir:
  sizeLimit: {{ .sizeLimit }}
{{- end -}}
{{- end -}}
