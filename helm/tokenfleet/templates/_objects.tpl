{{/* Objects that several components have in the same form. Each takes a component (see _names.tpl). */}}

{{/* One pod of a component may always be evicted: a drain never hangs, and never takes two at once. */}}
{{- define "tokenfleet.pdb" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "tokenfleet.name" . }}
  labels:
    {{- include "tokenfleet.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  # a pod that does not work protects nobody
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "tokenfleet.selector" . | nindent 6 }}
{{- end -}}

{{- define "tokenfleet.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "tokenfleet.name" . }}
  labels:
    {{- include "tokenfleet.labels" . | nindent 4 }}
automountServiceAccountToken: false
{{- end -}}

{{/* Without an address of its own: peers talk to pods, each over one long connection, and choose themselves. */}}
{{- define "tokenfleet.headlessService" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "tokenfleet.service" . }}
  labels:
    {{- include "tokenfleet.labels" . | nindent 4 }}
spec:
  clusterIP: None
  selector:
    {{- include "tokenfleet.selector" . | nindent 4 }}
  ports:
    - name: grpc
      port: {{ include "tokenfleet.port" .component }}
      targetPort: grpc
      {{- if not .root.Values.tls.peers.enabled }}
      appProtocol: kubernetes.io/h2c
      {{- end }}
{{- end -}}

{{- define "tokenfleet.hpa" -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "tokenfleet.name" . }}
  labels:
    {{- include "tokenfleet.labels" . | nindent 4 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "tokenfleet.name" . }}
  minReplicas: {{ .values.autoscaling.minReplicas }}
  maxReplicas: {{ .values.autoscaling.maxReplicas }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target:
          type: Utilization
          averageUtilization: {{ .values.autoscaling.targetCPUUtilizationPercentage }}
{{- end -}}
