{{/*
Names, labels and addresses. No other file makes a name up.

Most helpers take a component:
  root       the chart's own context ($)
  component  gateway, tokenizer, router, model-loader, worker, store or test
  values     the component's values
  pool       the pool's name; workers only
*/}}

{{/* Short enough that the longest suffix still gives a valid Service name. */}}
{{- define "tokenfleet.fullname" -}}
{{- $name := .root.Values.nameOverride | default .root.Chart.Name -}}
{{- if contains $name .root.Release.Name -}}
{{- .root.Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .root.Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tokenfleet.name" -}}
{{- $name := printf "%s-%s" (include "tokenfleet.fullname" .) .component -}}
{{- if .pool -}}{{- $name = printf "%s-%s" $name .pool -}}{{- end -}}
{{- $name -}}
{{- end -}}

{{/* The Service of a component of this release: (dict "root" $ "component" "router"). Pools share one. */}}
{{- define "tokenfleet.service" -}}
{{- printf "%s-%s" (include "tokenfleet.fullname" .) .component -}}
{{- end -}}

{{- define "tokenfleet.catalogName" -}}
{{- .root.Values.catalog.existingConfigMap | default (printf "%s-catalog" (include "tokenfleet.fullname" .)) -}}
{{- end -}}

{{/* What tells this release's pods from all others. */}}
{{- define "tokenfleet.releaseSelector" -}}
app.kubernetes.io/name: {{ .root.Values.nameOverride | default .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{- define "tokenfleet.selector" -}}
{{ include "tokenfleet.releaseSelector" . }}
app.kubernetes.io/component: {{ .component }}
{{- with .pool }}
tokenfleet/pool: {{ . }}
{{- end }}
{{- end -}}

{{/* A pod's labels change only with what it is: otherwise every release of the chart would restart every pod. */}}
{{- define "tokenfleet.podLabels" -}}
{{ include "tokenfleet.selector" . }}
app.kubernetes.io/part-of: tokenfleet
{{- end -}}

{{- define "tokenfleet.labels" -}}
{{ include "tokenfleet.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tokenfleet
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name (.root.Chart.Version | replace "+" "_") }}
{{- end -}}

{{/* (dict "root" $ "image" IMAGE-VALUES): registry/repository:tag, or @digest where the tag is one. */}}
{{- define "tokenfleet.image" -}}
{{- $tag := .image.tag | default .root.Values.image.tag | default .root.Chart.AppVersion -}}
{{- $registry := .root.Values.image.registry -}}
{{- with $registry }}{{ . | trimSuffix "/" }}/{{ end -}}
{{- .image.repository -}}
{{- ternary "@" ":" (hasPrefix "sha256:" $tag) -}}{{- $tag -}}
{{- end -}}

{{/* Ports are the same for every release: pods have addresses of their own. */}}
{{- define "tokenfleet.port" -}}
{{- get (dict "http" 8080 "gateway" 8081 "tokenizer" 8082 "router" 8083 "worker" 8084 "model-loader" 8085 "store" 6379 "metrics" 9090 "frames" 10000) . -}}
{{- end -}}

{{/* The full name of a component's gRPC service, whose health is its readiness. */}}
{{- define "tokenfleet.grpcService" -}}
{{- get (dict "gateway" "tokenfleet.v1.Inference" "tokenizer" "tokenfleet.v1.Tokenizer" "router" "tokenfleet.v1.Router" "model-loader" "tokenfleet.v1.ModelLoader" "worker" "tokenfleet.v1.Worker") . -}}
{{- end -}}

{{/* A port on all of the pod's addresses. */}}
{{- define "tokenfleet.listen" -}}
{{- printf "%s:%s" .root.Values.listenAddress (include "tokenfleet.port" .port) -}}
{{- end -}}

{{/* Processes of one pod that share its gRPC port; each has a port of its own for metrics and for frames. */}}
{{- define "tokenfleet.processes" -}}
{{- if eq .component "tokenizer" -}}{{- .root.Values.tokenizer.settings.processes | default 1 -}}{{- else -}}1{{- end -}}
{{- end -}}
