{{/*
What the schema cannot say because it takes two values to see it. Each problem names the key and the remedy;
all of them are told at once.
*/}}
{{- define "tokenfleet.checks" -}}
{{- $problems := list -}}
{{- if and (not .Values.catalog.existingConfigMap) (not .Values.catalog.models) -}}
{{- $problems = append $problems "catalog.models: name at least one model, or an existingConfigMap that does" -}}
{{- end -}}
{{- if and (eq .Values.store.mode "external") (not .Values.store.external.secretName) -}}
{{- $problems = append $problems "store.external.secretName: name the Secret that holds the store's URL (or set store.mode to embedded or none)" -}}
{{- end -}}
{{- range $name, $values := dict "gateway" .Values.gateway "tokenizer" .Values.tokenizer -}}
{{- with $values.autoscaling -}}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- $problems = append $problems (printf "%s.autoscaling.maxReplicas: %v is less than minReplicas, %v" $name .maxReplicas .minReplicas) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $caches := dict "tokenizer" .Values.tokenizer.modelCache -}}
{{- $environments := dict "gateway" .Values.gateway.extraEnv "tokenizer" .Values.tokenizer.extraEnv "router" .Values.router.extraEnv "modelLoader" .Values.modelLoader.extraEnv "workerDefaults" .Values.workerDefaults.extraEnv -}}
{{- range $pool, $_ := .Values.workerPools -}}
{{- $values := include "tokenfleet.pool" (dict "root" $ "pool" $pool) | fromJson -}}
{{- $_ := set $caches (printf "workerPools.%s" $pool) $values.modelCache -}}
{{- $_ := set $environments (printf "workerPools.%s" $pool) $values.extraEnv -}}
{{- if and $values.engineServer (ne $values.engine "remote") -}}
{{- $problems = append $problems (printf "workerPools.%s.engineServer: it is the engine `remote` that attaches to one, not %s" $pool $values.engine) -}}
{{- end -}}
{{- end -}}
{{- range $owner, $environment := $environments -}}
{{- range $name, $_ := $environment -}}
{{- if hasPrefix "TOKENFLEET_" $name -}}
{{- $problems = append $problems (printf "%s.extraEnv.%s: a setting of a service belongs into its settings" $owner $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $owner, $cache := $caches -}}
{{- if and (eq $cache.type "hostPath") (not $cache.hostPath) -}}
{{- $problems = append $problems (printf "%s.modelCache.hostPath: name the folder on the node" $owner) -}}
{{- end -}}
{{- if and (eq $cache.type "persistentVolumeClaim") (not $cache.claimName) -}}
{{- $problems = append $problems (printf "%s.modelCache.claimName: name the claim" $owner) -}}
{{- end -}}
{{- end -}}
{{- if .Values.tls.peers.enabled -}}
{{- range list "gateway" "tokenizer" "router" "modelLoader" "worker" -}}
{{- if not (get $.Values.tls.peers.secretNames .) -}}
{{- $problems = append $problems (printf "tls.peers.secretNames.%s: name the Secret with its certificate" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.edge.clientCertificates (not .Values.tls.edge.secretName) -}}
{{- $problems = append $problems "tls.edge.secretName: name the Secret with the gateway's certificate; without TLS no client can show one" -}}
{{- end -}}
{{- range .Values.modelVolumes -}}
{{- if eq (empty .claimName) (empty .hostPath) -}}
{{- $problems = append $problems (printf "modelVolumes: %s: name either a claimName or a hostPath" .name) -}}
{{- end -}}
{{- end -}}
{{- with $problems -}}
{{- fail (printf "\n\n  %s\n" (join "\n  " .)) -}}
{{- end -}}
{{- end -}}
