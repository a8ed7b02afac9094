{{/*
Certificates: those by which the services know each other (`tls.peers`), and the gateway's for its clients
(`tls.edge`). Each is a Secret in the form of kubernetes.io/tls, with the authorities in ca.crt; mounted as a folder,
so that a renewed one is taken without a restart.
*/}}

{{/* The key of a component's Secret in tls.peers.secretNames. */}}
{{- define "tokenfleet.tls.peerSecret" -}}
{{- get .root.Values.tls.peers.secretNames (eq .component "model-loader" | ternary "modelLoader" .component) -}}
{{- end -}}

{{/* Whether a component's gRPC port wants TLS, which the kubelet's gRPC probes do not speak. */}}
{{- define "tokenfleet.tls.onGrpc" -}}
{{- $edge := and (eq .component "gateway") .root.Values.tls.edge.secretName -}}
{{- $peer := and (ne .component "gateway") .root.Values.tls.peers.enabled -}}
{{- if or $edge $peer }}true{{ end -}}
{{- end -}}

{{- define "tokenfleet.tls.env" -}}
{{- $prefix := include "tokenfleet.env.prefix" . -}}
{{- if .root.Values.tls.peers.enabled }}
- name: {{ $prefix }}TLS_CERT
  value: /etc/tokenfleet/peer-tls/tls.crt
- name: {{ $prefix }}TLS_KEY
  value: /etc/tokenfleet/peer-tls/tls.key
- name: {{ $prefix }}TLS_CA
  value: /etc/tokenfleet/peer-tls/ca.crt
- name: {{ $prefix }}TLS_DOMAIN
  value: {{ .root.Values.tls.peers.domain }}
{{- end }}
{{- if and (eq .component "gateway") .root.Values.tls.edge.secretName }}
- name: {{ $prefix }}EDGE_TLS_CERT
  value: /etc/tokenfleet/edge-tls/tls.crt
- name: {{ $prefix }}EDGE_TLS_KEY
  value: /etc/tokenfleet/edge-tls/tls.key
{{- if .root.Values.tls.edge.clientCertificates }}
- name: {{ $prefix }}EDGE_TLS_CLIENT_CA
  value: /etc/tokenfleet/edge-tls/ca.crt
{{- end }}
{{- end }}
{{- end -}}

{{- define "tokenfleet.tls.mounts" -}}
{{- if .root.Values.tls.peers.enabled }}
- name: peer-tls
  mountPath: /etc/tokenfleet/peer-tls
  readOnly: true
{{- end }}
{{- if and (eq .component "gateway") .root.Values.tls.edge.secretName }}
- name: edge-tls
  mountPath: /etc/tokenfleet/edge-tls
  readOnly: true
{{- end }}
{{- end -}}

{{- define "tokenfleet.tls.volumes" -}}
{{- if .root.Values.tls.peers.enabled }}
- name: peer-tls
  secret:
    secretName: {{ include "tokenfleet.tls.peerSecret" . }}
{{- end }}
{{- if and (eq .component "gateway") .root.Values.tls.edge.secretName }}
- name: edge-tls
  secret:
    secretName: {{ .root.Values.tls.edge.secretName }}
{{- end }}
{{- end -}}

{{/* How clients reach the gateway: http or https. */}}
{{- define "tokenfleet.scheme" -}}
{{- if .root.Values.tls.edge.secretName }}https{{ else }}http{{ end -}}
{{- end -}}
