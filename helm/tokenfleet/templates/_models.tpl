{{/* Where model files come from and are kept: tokenizers and workers have the same two kinds of volume. */}}

{{- define "tokenfleet.models.env" -}}
- name: {{ include "tokenfleet.env.prefix" . }}CACHE_DIR
  value: /var/cache/tokenfleet
# what pip would keep beside the model cache would fill /tmp
- name: PIP_NO_CACHE_DIR
  value: "1"
{{- if .root.Values.auth.modelHub.secretName }}
- name: HF_TOKEN_PATH
  value: /etc/tokenfleet/model-hub/{{ .root.Values.auth.modelHub.secretKey }}
{{- end }}
{{- end -}}

{{- define "tokenfleet.models.mounts" -}}
- name: model-cache
  mountPath: /var/cache/tokenfleet
{{- range .root.Values.modelVolumes }}
- name: models-{{ .name }}
  mountPath: {{ .mountPath }}
  readOnly: true
{{- end }}
{{- if .root.Values.auth.modelHub.secretName }}
- name: model-hub
  mountPath: /etc/tokenfleet/model-hub
  readOnly: true
{{- end }}
{{- end -}}

{{- define "tokenfleet.models.volumes" -}}
- name: model-cache
  {{- with .values.modelCache }}
  {{- if eq .type "hostPath" }}
  hostPath:
    path: {{ .hostPath }}
    type: DirectoryOrCreate
  {{- else if eq .type "persistentVolumeClaim" }}
  persistentVolumeClaim:
    claimName: {{ .claimName }}
  {{- else }}
  emptyDir:
    {{- if .sizeLimit }}
    sizeLimit: {{ .sizeLimit }}
    {{- else }} {}
    {{- end }}
  {{- end }}
  {{- end }}
{{- range .root.Values.modelVolumes }}
- name: models-{{ .name }}
  {{- if .hostPath }}
  hostPath:
    path: {{ .hostPath }}
    type: Directory
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ .claimName }}
    readOnly: true
  {{- end }}
{{- end }}
{{- with .root.Values.auth.modelHub }}
{{- if .secretName }}
- name: model-hub
  secret:
    secretName: {{ .secretName }}
    items:
      - key: {{ .secretKey }}
        path: {{ .secretKey }}
{{- end }}
{{- end }}
{{- end -}}
