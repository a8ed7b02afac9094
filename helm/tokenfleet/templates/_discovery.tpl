{{/*
How services find their peers: by watching the EndpointSlices of each other's Services. Nothing else of the
Kubernetes API is asked for, and only by those who have peers to find.
*/}}

{{/* (…component…, "peers" (dict "WORKERS" "worker")): one setting for each kind of peer. */}}
{{- define "tokenfleet.env.discovery" -}}
{{- $prefix := include "tokenfleet.env.prefix" . -}}
{{- $root := .root -}}
{{- range $setting, $component := .peers }}
- name: {{ $prefix }}{{ $setting }}
  value: kubernetes://{{ include "tokenfleet.service" (dict "root" $root "component" $component) }}:grpc
{{- end }}
{{- end -}}
