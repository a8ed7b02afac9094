{{/* What all pods of the release have in common. Each takes a component (see _names.tpl). */}}

{{/* A component's Deployment: everything but the pod's containers and volumes. */}}
{{- define "tokenfleet.deployment.head" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "tokenfleet.name" . }}
  labels:
    {{- include "tokenfleet.labels" . | nindent 4 }}
{{- end -}}

{{/*
The number of replicas, left out where something else decides it. Helm 4 applies server-side: a field that it
states and an autoscaler changes is a conflict at every later upgrade and rollback.
*/}}
{{- define "tokenfleet.replicas" -}}
{{- $autoscaled := dig "autoscaling" "enabled" false .values -}}
{{- if not (or $autoscaled (kindIs "invalid" .values.replicas)) -}}
replicas: {{ .values.replicas }}
{{- end -}}
{{- end -}}

{{- define "tokenfleet.pod.metadata" -}}
labels:
  {{- include "tokenfleet.podLabels" . | nindent 2 }}
{{- $annotations := dict -}}
{{- if and .root.Values.metrics.scrapeAnnotations (not (has .component (list "store" "test"))) -}}
{{- $annotations = dict "prometheus.io/scrape" "true" "prometheus.io/port" (include "tokenfleet.port" "metrics") -}}
{{- end -}}
{{- range $name, $value := .values.podAnnotations -}}{{- $_ := set $annotations $name $value -}}{{- end -}}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Whether the component's pods talk to Kubernetes: only those that look for peers do. */}}
{{- define "tokenfleet.discovers" -}}
{{- if has .component (list "gateway" "router" "model-loader") }}true{{ else }}false{{ end -}}
{{- end -}}

{{/* The pod's spec up to its containers. */}}
{{- define "tokenfleet.pod.head" -}}
serviceAccountName: {{ include "tokenfleet.name" (dict "root" .root "component" .component) }}
automountServiceAccountToken: {{ include "tokenfleet.discovers" . }}
# Kubernetes would put TOKENFLEET_…_PORT variables into the pod, and an unknown setting stops a service
enableServiceLinks: false
# process 1 does not hear a SIGTERM that it has no handler for yet: told to end while it starts, it would go on until
# its whole grace is over
shareProcessNamespace: true
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .root.Values.podSecurity.runAsUser }}
  runAsGroup: {{ .root.Values.podSecurity.runAsGroup }}
  fsGroup: {{ .root.Values.podSecurity.fsGroup }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .values.priorityClassName | default .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.zones }}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - key: topology.kubernetes.io/zone
              operator: In
              values:
                {{- toYaml . | nindent 16 }}
{{- end }}
tolerations:
  # without these two, a dead node keeps its pods for five minutes
  - key: node.kubernetes.io/not-ready
    operator: Exists
    effect: NoExecute
    tolerationSeconds: {{ .root.Values.nodeFailure.tolerationSeconds }}
  - key: node.kubernetes.io/unreachable
    operator: Exists
    effect: NoExecute
    tolerationSeconds: {{ .root.Values.nodeFailure.tolerationSeconds }}
  {{- with .values.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/*
Spread over zones, then over nodes. matchLabelKeys counts only pods of the same revision: otherwise a rolling
update leaves a zone empty. nodeTaintsPolicy leaves tainted nodes out of the count: otherwise DoNotSchedule
waits for a zone that is down.
*/}}
{{- define "tokenfleet.pod.spread" -}}
topologySpreadConstraints:
  {{- range $key, $when := dict "topology.kubernetes.io/zone" .root.Values.topologySpread.zone "kubernetes.io/hostname" .root.Values.topologySpread.node }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: {{ $when }}
    nodeTaintsPolicy: Honor
    labelSelector:
      matchLabels:
        {{- include "tokenfleet.selector" $ | nindent 8 }}
    matchLabelKeys:
      - pod-template-hash
  {{- end }}
{{- end -}}

{{/* preStop, what the service itself waits before it drains, its drain, and time for its farewells. */}}
{{- define "tokenfleet.pod.grace" -}}
{{- $delay := dig "settings" "shutdown_delay_s" 0 .values | ceil -}}
terminationGracePeriodSeconds: {{ add .root.Values.preStopSeconds $delay .values.drainSeconds 15 }}
{{- end -}}

{{/* A container's image and confinement. Takes root and image. */}}
{{- define "tokenfleet.container.image" -}}
image: {{ include "tokenfleet.image" . | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  {{- include "tokenfleet.container.confinement" . | nindent 2 }}
{{- end -}}

{{- define "tokenfleet.container.confinement" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/*
Probes by gRPC health. The empty name means that the process serves: startup and liveness. The service's own
name means that it can work: readiness. A worker that loads for minutes is alive and not ready. Where gRPC asks for
certificates, which probes do not have, the same is said over HTTP beside the metrics.
*/}}
{{- define "tokenfleet.probe" -}}
{{- if include "tokenfleet.tls.onGrpc" . -}}
httpGet:
  port: metrics
  path: {{ .ready | ternary "/health/ready" "/health/live" }}
{{- else -}}
grpc:
  port: {{ include "tokenfleet.port" .component }}
  {{- if .ready }}
  service: {{ include "tokenfleet.grpcService" .component }}
  {{- end }}
{{- end -}}
{{- end -}}

{{- define "tokenfleet.container.probes" -}}
{{- $live := include "tokenfleet.probe" (merge (dict "ready" false) .) -}}
startupProbe:
  {{- $live | nindent 2 }}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: {{ max 1 (div (add .values.startupSeconds 1) 2) }}
livenessProbe:
  {{- $live | nindent 2 }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  {{- include "tokenfleet.probe" (merge (dict "ready" true) .) | nindent 2 }}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
lifecycle:
  preStop:
    # the news that this pod ends needs a moment to reach those who would still connect to it
    sleep:
      seconds: {{ .root.Values.preStopSeconds }}
{{- end -}}

{{- define "tokenfleet.container.ports" -}}
- name: grpc
  containerPort: {{ include "tokenfleet.port" .component }}
{{- if has .component (list "tokenizer" "router" "worker") }}
- name: frames
  containerPort: {{ include "tokenfleet.port" "frames" }}
{{- end }}
- name: metrics
  containerPort: {{ include "tokenfleet.port" "metrics" }}
{{- end -}}

{{- define "tokenfleet.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .root.Values.temporaryFiles.sizeLimit }}
{{- with include "tokenfleet.tls.volumes" . | trim }}
{{ . }}
{{- end }}
{{- end -}}

{{- define "tokenfleet.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- with include "tokenfleet.tls.mounts" . | trim }}
{{ . }}
{{- end }}
{{- end -}}
