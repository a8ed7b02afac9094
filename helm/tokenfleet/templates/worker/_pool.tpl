{{/*
A pool's values: `workerDefaults`, with each key that the pool states put in its place. As JSON, since a
template can only answer text.
*/}}
{{- define "tokenfleet.pool" -}}
{{- $values := deepCopy .root.Values.workerDefaults -}}
{{- range $key, $value := index .root.Values.workerPools .pool -}}
{{- $_ := set $values $key $value -}}
{{- end -}}
{{- toJson $values -}}
{{- end -}}

{{/*
Engines that bring no libraries of their own run in the smallest image; transformers in vLLM's, which has them.
*/}}
{{- define "tokenfleet.pool.image" -}}
{{- $engine := get (dict "sim" "llamacpp" "remote" "llamacpp" "transformers" "vllm") .engine | default .engine -}}
{{- $default := dict "repository" (printf "tokenfleet/worker-%s" $engine) -}}
{{- toJson (merge (dict) (.image | default dict) $default) -}}
{{- end -}}

{{/*
An engine server of somebody else's, in an image of its vendor's that nothing is added to. It is a sidecar that
starts before the worker and ends after it, so that answers that run can finish while the pod goes. The pool's
accelerators are its, and so are the models.
*/}}
{{- define "tokenfleet.pool.engineServer" -}}
{{- $server := .values.engineServer -}}
{{- $isVllm := eq $server.dialect "vllm" -}}
- name: engine-server
  restartPolicy: Always
  image: {{ $server.image | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  securityContext:
    {{- include "tokenfleet.container.confinement" . | nindent 4 }}
  {{- with $server.command }}
  command:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  args:
    {{- toYaml $server.args | nindent 4 }}
  ports:
    - name: engine
      containerPort: {{ $server.port }}
  env:
    - name: HOME
      value: {{ include "tokenfleet.home" . }}
    {{- range $name, $value := $server.env }}
    - name: {{ $name }}
      value: {{ $value | quote }}
    {{- end }}
  # it listens once its model is loaded; the worker starts then
  startupProbe:
    tcpSocket:
      port: engine
    periodSeconds: 5
    failureThreshold: {{ max 1 (div (add $server.startupSeconds 4) 5) }}
  livenessProbe:
    {{- include "tokenfleet.pool.engineServer.probe" $server | nindent 4 }}
    periodSeconds: 10
    timeoutSeconds: 10
    failureThreshold: 6
  readinessProbe:
    {{- include "tokenfleet.pool.engineServer.probe" $server | nindent 4 }}
    {{- if $isVllm }}
      service: vllm.grpc.engine.VllmEngine
    {{- end }}
    periodSeconds: 10
    timeoutSeconds: 10
    failureThreshold: 3
  resources:
    {{- include "tokenfleet.pool.resources" (merge (dict "resources" $server.resources) .values) | nindent 4 }}
  volumeMounts:
    - name: engine-server-tmp
      mountPath: /tmp
    {{- include "tokenfleet.models.mounts" . | nindent 4 }}
    {{- if .values.sharedMemory }}
    - name: shared-memory
      mountPath: /dev/shm
    {{- end }}
{{- end -}}

{{/* TensorRT-LLM's server has no health service of gRPC's kind. */}}
{{- define "tokenfleet.pool.engineServer.probe" -}}
{{- if eq .dialect "vllm" -}}
grpc:
  port: {{ .port }}
{{- else -}}
tcpSocket:
  port: engine
{{- end -}}
{{- end -}}

{{/* The pool's resources with its accelerators, which have to be requests and limits alike. */}}
{{- define "tokenfleet.pool.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if .accelerators -}}
{{- range list "requests" "limits" -}}
{{- $_ := set $resources . (merge (dict $.acceleratorResource $.accelerators) (get $resources . | default dict)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}
