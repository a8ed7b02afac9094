{{/*
NetworkPolicies: everything is denied to the release's pods, and each component is then allowed exactly the
edges that it has. `ingress` and `egress` of a component are written in its own networkpolicy.yaml.
*/}}

{{- define "tokenfleet.policy.head" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "tokenfleet.name" . }}
  labels:
    {{- include "tokenfleet.labels" . | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- include "tokenfleet.selector" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
{{- end -}}

{{/* Peers within the release: (dict "root" $ "components" (list …)). */}}
{{- define "tokenfleet.policy.pods" -}}
{{- $root := .root -}}
{{- range .components }}
- podSelector:
    matchLabels:
      {{- include "tokenfleet.selector" (dict "root" $root "component" .) | nindent 6 }}
{{- end }}
{{- end -}}

{{/*
The ports of a component that others connect to. Where hot streams travel as plain frames, that is a second
port, and one for each of the processes that share the first.
*/}}
{{- define "tokenfleet.policy.servedPorts" -}}
{{- $processes := include "tokenfleet.processes" . | int -}}
- port: {{ include "tokenfleet.port" .component }}
  protocol: TCP
{{- if has .component (list "tokenizer" "router" "worker") }}
{{ include "tokenfleet.policy.portRange" (dict "first" (include "tokenfleet.port" "frames") "count" $processes) }}
{{- end }}
{{- end -}}

{{- define "tokenfleet.policy.portRange" -}}
- port: {{ .first }}
  {{- if gt (int .count) 1 }}
  endPort: {{ sub (add (int .first) (int .count)) 1 }}
  {{- end }}
  protocol: TCP
{{- end -}}

{{/* Who may ask this component: (dict "root" $ "component" "router" "from" (list "gateway")). */}}
{{- define "tokenfleet.policy.callers" -}}
- from:
    {{- include "tokenfleet.policy.pods" (dict "root" .root "components" .from) | trim | nindent 4 }}
  ports:
    {{- include "tokenfleet.policy.servedPorts" . | trim | nindent 4 }}
{{- end -}}

{{/* Whom this component asks: (dict "root" $ "to" (list "tokenizer" …)), and the cluster's DNS. */}}
{{- define "tokenfleet.policy.callees" -}}
{{- $root := .root -}}
- to:
    - namespaceSelector: {}
      podSelector:
        matchLabels:
          {{- toYaml .root.Values.networkPolicy.dns.podLabels | nindent 10 }}
    {{- range .root.Values.networkPolicy.dns.cidrs }}
    - ipBlock:
        cidr: {{ . }}
    {{- end }}
  ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- range .to }}
- to:
    {{- include "tokenfleet.policy.pods" (dict "root" $root "components" (list .)) | trim | nindent 4 }}
  ports:
    {{- include "tokenfleet.policy.servedPorts" (dict "root" $root "component" .) | trim | nindent 4 }}
{{- end }}
{{- end -}}

{{- define "tokenfleet.policy.metrics" -}}
{{- with .root.Values.networkPolicy.metricsFrom }}
- from:
    {{- range . }}
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ . }}
    {{- end }}
  ports:
    {{- $count := include "tokenfleet.processes" $ }}
    {{- include "tokenfleet.policy.portRange" (dict "first" (include "tokenfleet.port" "metrics") "count" $count) | trim | nindent 4 }}
{{- end }}
{{- end -}}

{{/* Addresses outside of the release: (dict "to" VALUES-WITH-cidrs-AND-ports). */}}
{{- define "tokenfleet.policy.outside" -}}
{{- if and .to.cidrs .to.ports }}
- to:
    {{- range .to.cidrs }}
    - ipBlock:
        cidr: {{ . }}
    {{- end }}
  ports:
    {{- range .to.ports }}
    - port: {{ . }}
      protocol: TCP
    {{- end }}
{{- end }}
{{- end -}}
