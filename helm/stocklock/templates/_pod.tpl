{{/* Takes a dict of root, component and values (those of a role, if the pod has one). What every container has in common. */}}
{{- define "stocklock.container" -}}
{{- $values := .root.Values -}}
{{- $role := .values | default dict -}}
{{- with $values.image }}
image: {{ ternary (printf "%s@%s" .repository .digest) (printf "%s:%s" .repository (.tag | default $.root.Chart.AppVersion)) (ne .digest "") | quote }}
imagePullPolicy: {{ .pullPolicy }}
{{- end }}
{{- with $values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
# Without a message of its own, `kubectl describe pod` shows the last lines of the log.
terminationMessagePolicy: FallbackToLogsOnError
env:
  {{- include "stocklock.env" . | nindent 2 }}
{{- with concat $values.extraEnvFrom (dig "extraEnvFrom" list $role) }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - name: tmp
    mountPath: /tmp
  {{- range include "stocklock.folders" . | fromYamlArray }}
  - name: {{ .name }}
    mountPath: {{ .path }}
    readOnly: true
  {{- end }}
  {{- with concat $values.extraVolumeMounts (dig "extraVolumeMounts" list $role) }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* The folders of existing secrets and config maps: name, path, and secret or configMap. Folders, so that the program sees
     a file that changes. */}}
{{- define "stocklock.folders" -}}
{{- $values := .root.Values -}}
{{- with $values.tls.secretName }}
- {name: tls, path: /etc/stocklock/tls, secret: {{ . | quote }}}
{{- end }}
{{- with $values.schemas.configMapName }}
- {name: schemas, path: /etc/stocklock/schemas, configMap: {{ . | quote }}}
{{- end }}
{{- if has .component (list "ingest" "doctor") }}
{{- with $values.auth.tokensSecret }}
- {name: auth, path: /etc/stocklock/auth, secret: {{ . | quote }}}
{{- end }}
{{- with $values.http.tlsSecret }}
- {name: http-tls, path: /etc/stocklock/http, secret: {{ . | quote }}}
{{- end }}
{{- end }}
{{- end -}}

{{/* Takes the same. What every pod has in common. */}}
{{- define "stocklock.pod" -}}
{{- $values := .root.Values -}}
{{- $role := .values | default dict -}}
# stocklock never speaks to the Kubernetes API.
automountServiceAccountToken: false
# Another Service's variables are none of our settings.
enableServiceLinks: false
{{- with $values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with $values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $key := list "priorityClassName" "runtimeClassName" "schedulerName" "dnsPolicy" }}
{{- with dig $key "" $role | default (index $values $key) }}
{{ $key }}: {{ . | quote }}
{{- end }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "dnsConfig" "hostAliases" }}
{{- with dig $key "" $role | default (index $values $key) }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
volumes:
  # For files that somebody brings along, such as one of products to import. stocklock itself writes none.
  - name: tmp
    emptyDir:
      sizeLimit: {{ $values.tmpSizeLimit | quote }}
  {{- range include "stocklock.folders" . | fromYamlArray }}
  - name: {{ .name }}
    {{- if .secret }}
    secret:
      secretName: {{ .secret | quote }}
      defaultMode: 0440
    {{- else }}
    configMap:
      name: {{ .configMap | quote }}
    {{- end }}
  {{- end }}
  {{- with concat $values.extraVolumes (dig "extraVolumes" list $role) }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Takes the same. Constraints without a selector get that of the role. */}}
{{- define "stocklock.spread" -}}
{{- $selector := dict "matchLabels" (include "stocklock.selector" . | fromYaml) -}}
{{- $constraints := list -}}
{{- range .values.topologySpreadConstraints | default .root.Values.topologySpreadConstraints -}}
{{- $constraints = append $constraints (merge (deepCopy .) (dict "labelSelector" $selector)) -}}
{{- end -}}
{{- with $constraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Takes the same. The role's own lifecycle, or the kubelet's sleep before ingest stops. */}}
{{- define "stocklock.lifecycle" -}}
{{- $sleep := int (dig "preStopSleepSeconds" 0 .values) -}}
{{- if .values.lifecycle }}
lifecycle:
  {{- toYaml .values.lifecycle | nindent 2 }}
{{- else if and $sleep (semverCompare ">=1.30.0" (include "stocklock.kubernetes" .root)) }}
# Still takes requests while the Service's other ends learn that this pod is going.
lifecycle:
  preStop:
    sleep:
      seconds: {{ $sleep }}
{{- end }}
{{- end -}}
