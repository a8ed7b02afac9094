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

{{/* Engines that bring no libraries of their own run in the smallest image. */}}
{{- define "tokenfleet.pool.image" -}}
{{- $engine := has .engine (list "sim" "remote") | ternary "llamacpp" .engine -}}
{{- $default := dict "repository" (printf "tokenfleet/worker-%s" $engine) -}}
{{- toJson (merge (dict) (.image | default dict) $default) -}}
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
