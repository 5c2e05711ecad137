{{/* The beginning of every object's name; short enough for "-compensator" to follow. */}}
{{- define "stocklock.fullname" -}}
{{- $name := .Release.Name -}}
{{- if not (contains .Chart.Name $name) -}}
{{- $name = printf "%s-%s" $name .Chart.Name -}}
{{- end -}}
{{- .Values.fullnameOverride | default $name | trunc 51 | trimSuffix "-" -}}
{{- end -}}

{{- define "stocklock.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "stocklock.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{/* Takes a dict of root and component. The labels of pods: no version, so that one of the chart alone restarts nothing. */}}
{{- define "stocklock.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* The same and the versions: the labels of everything else. */}}
{{- define "stocklock.labels" -}}
{{ include "stocklock.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The variables of all settings: what the chart itself decides, `config`, and the secrets that this configuration uses. */}}
{{- define "stocklock.env" -}}
{{- $client := dict "url" (printf "http://%s-ingest:%d" (include "stocklock.fullname" .) (int .Values.service.port)) -}}
{{- $own := dict "http" (dict "listen" "0.0.0.0:8080") "admin" (dict "listen" "0.0.0.0:9464") "client" $client -}}
{{- range $section, $settings := merge $own .Values.config }}
{{- range $key, $value := $settings }}
- name: {{ include "stocklock.variable" (list $section $key) }}
  {{- /* Numbers come as floats, and large ones would be written 1e+06. A $ is doubled: $(NAME) would be replaced. */}}
  value: {{ ternary (toString (int64 $value)) $value (kindIs "float64" $value) | toString | replace "$" "$$" | quote }}
{{- end }}
{{- end }}
{{- $unused := list -}}
{{- if ne (dig "lock" "strategy" "row" .Values.config) "redlock" -}}
{{- $unused = append $unused "redis.urls" -}}
{{- end -}}
{{- if not (hasPrefix "sasl_" (dig "kafka" "security_protocol" "plaintext" .Values.config)) -}}
{{- $unused = append $unused "kafka.sasl_password" -}}
{{- end -}}
{{- include "stocklock.secretEnv" (dict "name" .Values.secret.name "keys" .Values.secret.keys "unused" $unused) }}
{{- end -}}

{{/* Takes a dict of a secret's name, its keys by section and setting, and the settings that are unused. Without a key, no variable. */}}
{{- define "stocklock.secretEnv" -}}
{{- range $section, $settings := .keys }}
{{- range $setting, $key := $settings }}
{{- if and $key (not (has (printf "%s.%s" $section $setting) $.unused)) }}
- name: {{ include "stocklock.variable" (list $section $setting) }}
  valueFrom:
    secretKeyRef:
      name: {{ $.name | quote }}
      key: {{ $key | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "stocklock.variable" -}}
STOCKLOCK__{{ index . 0 | upper }}__{{ index . 1 | upper }}
{{- end -}}

{{/* Fails where values that are right by themselves cannot work together. */}}
{{- define "stocklock.check" -}}
{{- $partitions := int (dig "topics" "partitions" 0 .Values.config) -}}
{{- /* Without setup, somebody else creates the topics, and only a value says how many partitions they have. */}}
{{- if and (not $partitions) .Values.setup.enabled -}}
{{- $partitions = 12 -}}
{{- end -}}
{{- range $role := list "worker" "compensator" -}}
{{- $replicas := int (index $.Values $role).replicas -}}
{{- if and $partitions (gt $replicas $partitions) -}}
{{- fail (printf "%s.replicas is %d, and a topic has %d partitions: the others would find no work. If the topics have more, set config.topics.partitions to their number" $role $replicas $partitions) -}}
{{- end -}}
{{- end -}}
{{- $deadline := dig "stop" "deadline" "20s" .Values.config -}}
{{- $least := int (include "stocklock.seconds" $deadline) | add 10 | int -}}
{{- if lt (int (include "stocklock.gracePeriod" .)) $least -}}
{{- fail (printf "terminationGracePeriodSeconds is %d, and a stop takes up to %d s: config.stop.deadline (%s) and 10 s" (int (include "stocklock.gracePeriod" .)) $least $deadline) -}}
{{- end -}}
{{- end -}}

{{/* The seconds of a duration that is one number and one unit, or several of them; what is less than a second counts as one. */}}
{{- define "stocklock.seconds" -}}
{{- $seconds := 0 -}}
{{- range $part := regexFindAll "[0-9]+ *[a-zA-Z]+" . -1 -}}
{{- $number := int (regexFind "[0-9]+" $part) -}}
{{- $unit := regexFind "[a-zA-Z]+" $part -}}
{{- if regexMatch "^(n|us|mil|ms)" $unit -}}
{{- $seconds = add $seconds 1 -}}
{{- else if hasPrefix "s" $unit -}}
{{- $seconds = add $seconds $number -}}
{{- else if hasPrefix "m" $unit -}}
{{- $seconds = add $seconds (mul $number 60) -}}
{{- else if hasPrefix "h" $unit -}}
{{- $seconds = add $seconds (mul $number 3600) -}}
{{- else -}}
{{- $seconds = add $seconds (mul $number 86400) -}}
{{- end -}}
{{- end -}}
{{- $seconds -}}
{{- end -}}

{{/* How long Kubernetes waits for a pod: as configured, or the stop's deadline, and 10 s for what comes before and after it. */}}
{{- define "stocklock.gracePeriod" -}}
{{- $deadline := dig "stop" "deadline" "20s" .Values.config -}}
{{- .Values.terminationGracePeriodSeconds | default (include "stocklock.seconds" $deadline | int | add 10) | int -}}
{{- end -}}

{{/* What every container has in common. */}}
{{- define "stocklock.container" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
volumeMounts:
  - name: tmp
    mountPath: /tmp
  {{- if .Values.tls.secretName }}
  - name: tls
    mountPath: /etc/stocklock/tls
    readOnly: true
  {{- end }}
  {{- if .Values.schemas.configMapName }}
  - name: schemas
    mountPath: /etc/stocklock/schemas
    readOnly: true
  {{- end }}
{{- end -}}

{{/* What every pod has in common. */}}
{{- define "stocklock.pod" -}}
automountServiceAccountToken: false
# Another Service's variables are none of our settings.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  # The user of the image.
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumes:
  # For files that somebody brings along, such as one of products to import. stocklock itself writes none.
  - name: tmp
    emptyDir:
      sizeLimit: 256Mi
  {{- if .Values.tls.secretName }}
  - name: tls
    secret:
      secretName: {{ .Values.tls.secretName | quote }}
      defaultMode: 0440
  {{- end }}
  {{- if .Values.schemas.configMapName }}
  - name: schemas
    configMap:
      name: {{ .Values.schemas.configMapName | quote }}
  {{- end }}
{{- end -}}
