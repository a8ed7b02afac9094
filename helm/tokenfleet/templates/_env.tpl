{{/*
The environment of the services. Every service refuses a variable with its prefix that is no setting of it, and
tests/helm hands what is rendered here to the services' own settings models.
*/}}

{{/* TOKENFLEET_MODEL_LOADER_ for model-loader */}}
{{- define "tokenfleet.env.prefix" -}}
TOKENFLEET_{{ .component | upper | replace "-" "_" }}_
{{- end -}}

{{/* A scalar or a list as the services read it. Helm reads numbers as floating point: 8388608 would become 8.388608e+06. */}}
{{- define "tokenfleet.env.value" -}}
{{- if kindIs "slice" . -}}{{- join "," . -}}
{{- else if kindIs "string" . -}}{{- . -}}
{{- else -}}{{- toJson . -}}
{{- end -}}
{{- end -}}

{{/*
What a service keeps in its home. An engine compiles kernels for its accelerator and keeps them there, gigabytes of
them: beside the models, where they outlive a restart, and not in /tmp, where they would have the pod evicted.
*/}}
{{- define "tokenfleet.home" -}}
{{- ternary "/var/cache/tokenfleet/home" "/tmp" (eq .component "worker") -}}
{{- end -}}

{{/* What every service is told, then the component's `settings`, then `extraEnv`. */}}
{{- define "tokenfleet.env.common" -}}
{{- $prefix := include "tokenfleet.env.prefix" . -}}
- name: HOME
  value: {{ include "tokenfleet.home" . }}
- name: {{ $prefix }}LISTEN
  value: {{ include "tokenfleet.listen" (dict "root" .root "port" .component) | quote }}
- name: {{ $prefix }}METRICS_LISTEN
  value: {{ include "tokenfleet.listen" (dict "root" .root "port" "metrics") | quote }}
- name: {{ $prefix }}LOG_FORMAT
  value: json
- name: {{ $prefix }}GRACE_S
  value: {{ .values.drainSeconds | quote }}
{{- with include "tokenfleet.tls.env" . | trim }}
{{ . }}
{{- end }}
{{- range $key, $value := .values.settings }}
{{- if not (kindIs "invalid" $value) }}
- name: {{ $prefix }}{{ upper $key }}
  value: {{ include "tokenfleet.env.value" $value | quote }}
{{- end }}
{{- end }}
{{- range $name, $value := .values.extraEnv }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{/* Where peers find this pod's plain frames: at its own address, whatever they dialed, and at a known port. */}}
{{- define "tokenfleet.env.frames" -}}
- name: {{ include "tokenfleet.env.prefix" . }}FRAMES_PORT
  value: {{ include "tokenfleet.port" "frames" | quote }}
- name: {{ include "tokenfleet.env.prefix" . }}ADVERTISE_HOST
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
{{- end -}}

{{- define "tokenfleet.env.loader" -}}
- name: {{ include "tokenfleet.env.prefix" . }}LOADER
  value: {{ printf "%s:%s" (include "tokenfleet.service" (dict "root" .root "component" "model-loader")) (include "tokenfleet.port" "model-loader") }}
{{- end -}}
