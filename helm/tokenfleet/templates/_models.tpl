{{/* Where model files come from and are kept: tokenizers and workers have the same two kinds of volume. */}}

{{- define "tokenfleet.models.env" -}}
- name: {{ include "tokenfleet.env.prefix" . }}CACHE_DIR
  value: /var/cache/tokenfleet
# what pip would keep beside the model cache would fill /tmp
- name: PIP_NO_CACHE_DIR
  value: "1"
{{- end -}}

{{- define "tokenfleet.models.mounts" -}}
- name: model-cache
  mountPath: /var/cache/tokenfleet
{{- range .root.Values.modelVolumes }}
- name: models-{{ .name }}
  mountPath: {{ .mountPath }}
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
{{- end -}}
