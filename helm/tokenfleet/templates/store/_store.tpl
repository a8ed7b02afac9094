{{/* Where the model-loader keeps what shall outlive it. */}}
{{- define "tokenfleet.store.env" -}}
{{- if eq .root.Values.store.mode "embedded" -}}
- name: TOKENFLEET_MODEL_LOADER_STORE
  value: redis://{{ include "tokenfleet.service" (dict "root" .root "component" "store") }}:{{ include "tokenfleet.port" "store" }}/0
{{- else if eq .root.Values.store.mode "external" -}}
- name: TOKENFLEET_MODEL_LOADER_STORE
  valueFrom:
    secretKeyRef:
      name: {{ .root.Values.store.external.secretName }}
      key: {{ .root.Values.store.external.secretKey }}
{{- end -}}
{{- end -}}
