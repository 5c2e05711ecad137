{{/* STOCKLOCK__SECTION__KEY */}}
{{- define "stocklock.variable" -}}
STOCKLOCK__{{ index . 0 | upper }}__{{ index . 1 | upper }}
{{- end -}}

{{/* Takes a dict of root, component and values. The variables of all settings: what the chart itself decides, `config`,
     and the secrets that this configuration uses. Then those of tracing. */}}
{{- define "stocklock.ownEnv" -}}
{{- $values := .root.Values -}}
{{- range $section, $settings := include "stocklock.settings" . | fromYaml }}
{{- range $key, $value := $settings }}
- name: {{ include "stocklock.variable" (list $section $key) }}
  {{- /* Numbers come as floats, and large ones would be written 1e+06. A $ is doubled: $(NAME) would be replaced. */}}
  value: {{ ternary (toString (int64 $value)) $value (kindIs "float64" $value) | toString | replace "$" "$$" | quote }}
{{- end }}
{{- end }}
{{- if eq (dig "kind" "" (.values | default dict)) "StatefulSet" }}
- name: STOCKLOCK__KAFKA__GROUP_INSTANCE_ID
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- end }}
{{- $secret := dict "name" $values.secret.name "keys" $values.secret.keys "unused" (include "stocklock.unusedSecrets" .root | fromYamlArray) -}}
{{- include "stocklock.secretEnv" $secret }}
{{- if eq .component "setup" }}
{{- $own := $values.setup.secret }}
{{- include "stocklock.secretEnv" (dict "name" ($own.name | default $values.secret.name) "keys" $own.keys "unused" list) }}
{{- end }}
{{- include "stocklock.tracingEnv" . }}
{{- end -}}

{{/* The same, and those of extraEnv. */}}
{{- define "stocklock.env" -}}
{{ include "stocklock.ownEnv" . | trim }}
{{- with concat .root.Values.extraEnv (dig "extraEnv" list (.values | default dict)) }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* How clients speak to ingest: https or http. */}}
{{- define "stocklock.scheme" -}}
{{- $isHttps := or .Values.http.tlsSecret (dig "http" "tls_certificate_location" "" .Values.config) -}}
{{- ternary "https" "http" (not (empty $isHttps)) -}}
{{- end -}}

{{/* Sections, keys and values of the settings that are not secret. */}}
{{- define "stocklock.settings" -}}
{{- $values := .root.Values -}}
{{- /* With the namespace, as the certificate of ingest names it. */}}
{{- $client := dict "url" (printf "%s://%s-ingest.%s:%d" (include "stocklock.scheme" .root) (include "stocklock.fullname" .root) .root.Release.Namespace (int $values.service.port)) -}}
{{- $own := dict "http" (dict "listen" (printf "%s:8080" $values.listenAddress)) "admin" (dict "listen" (printf "%s:9464" $values.listenAddress)) "client" $client -}}
{{- if has .component (list "ingest" "doctor") -}}
{{- if $values.auth.tokensSecret -}}
{{- $_ := set $own "auth" (dict "tokens_file" (printf "/etc/stocklock/auth/%s" $values.auth.tokensKey)) -}}
{{- end -}}
{{- if $values.http.tlsSecret -}}
{{- $_ := set $own.http "tls_certificate_location" "/etc/stocklock/http/tls.crt" -}}
{{- $_ := set $own.http "tls_key_location" "/etc/stocklock/http/tls.key" -}}
{{- end -}}
{{- end -}}
{{- /* A member that comes back within its session keeps its partitions. The program's own default is shorter than a restart. */}}
{{- if eq (dig "kind" "" (.values | default dict)) "StatefulSet" -}}
{{- if not (dig "kafka" "session_timeout" "" $values.config) -}}
{{- $_ := set $own "kafka" (dict "session_timeout" "1m") -}}
{{- end -}}
{{- end -}}
{{- merge $own (deepCopy $values.config) | toYaml -}}
{{- end -}}

{{/* The secret settings that this configuration does not use. */}}
{{- define "stocklock.unusedSecrets" -}}
{{- $sasl := hasPrefix "sasl_" (dig "kafka" "security_protocol" "plaintext" .Values.config) -}}
{{- $oauth := eq (dig "kafka" "sasl_mechanism" "" .Values.config) "OAUTHBEARER" -}}
{{- $unused := list -}}
{{- if ne (dig "lock" "strategy" "row" .Values.config) "redlock" -}}
{{- $unused = append $unused "redis.urls" -}}
{{- end -}}
{{- if or (not $sasl) $oauth -}}
{{- $unused = append $unused "kafka.sasl_password" -}}
{{- end -}}
{{- if not (and $sasl $oauth) -}}
{{- $unused = append $unused "kafka.oauth_client_secret" -}}
{{- end -}}
{{- toYaml $unused -}}
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

{{/* Takes what ownEnv takes. The variables of OpenTelemetry, where traces are sent. Each role is a service of its own, unless the
     values name the service. */}}
{{- define "stocklock.tracingEnv" -}}
{{- $isNamed := hasKey .root.Values.tracing.resourceAttributes "service.name" -}}
{{- range concat .root.Values.extraEnv (dig "extraEnv" list (.values | default dict)) -}}
{{- $isNamed = or $isNamed (eq .name "OTEL_SERVICE_NAME") -}}
{{- end -}}
{{- with .root.Values.tracing }}
{{- if .endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint | quote }}
{{- if not $isNamed }}
- name: OTEL_SERVICE_NAME
  value: stocklock-{{ $.component }}
{{- end }}
- name: OTEL_TRACES_SAMPLER
  value: {{ .sampler | quote }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ .samplerArg | quote }}
{{- if .headersSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef:
      name: {{ .headersSecret | quote }}
      key: {{ .headersKey | quote }}
{{- end }}
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- $attributes := list "k8s.namespace.name=$(POD_NAMESPACE)" "k8s.pod.name=$(POD_NAME)" }}
{{- range $name, $value := .resourceAttributes }}
{{- $attributes = append $attributes (printf "%s=%s" $name $value) }}
{{- end }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ join "," $attributes | quote }}
{{- end }}
{{- end }}
{{- end -}}
