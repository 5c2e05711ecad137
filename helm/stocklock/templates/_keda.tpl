{{/* KEDA's word for the SASL mechanism; none without SASL. */}}
{{- define "stocklock.kedaMechanism" -}}
{{- if hasPrefix "sasl_" (dig "kafka" "security_protocol" "plaintext" .Values.config) -}}
{{- $words := dict "PLAIN" "plaintext" "SCRAM-SHA-256" "scram_sha256" "SCRAM-SHA-512" "scram_sha512" "OAUTHBEARER" "oauthbearer" -}}
{{- $mechanism := dig "kafka" "sasl_mechanism" "" .Values.config -}}
{{- if not (hasKey $words $mechanism) -}}
{{- fail (printf "keda.enabled is true, and config.kafka.sasl_mechanism is %q: KEDA needs one of %s" $mechanism (keys $words | sortAlpha | join ", ")) -}}
{{- end -}}
{{- get $words $mechanism -}}
{{- end -}}
{{- end -}}

{{/* Takes a dict of root and component. The spec of a TriggerAuthentication: KEDA reads names from the variables of the role's
     container, and passwords and certificates from the same secrets as the role. Nothing where the brokers ask for nothing. */}}
{{- define "stocklock.kedaParameters" -}}
{{- $values := .root.Values -}}
{{- $kafka := dig "kafka" dict $values.config -}}
{{- $protocol := dig "security_protocol" "plaintext" $kafka -}}
{{- $keys := $values.secret.keys.kafka -}}
{{- $env := list -}}
{{- $secrets := list -}}
{{- if hasPrefix "sasl_" $protocol -}}
{{- $isOauth := eq (dig "sasl_mechanism" "" $kafka) "OAUTHBEARER" -}}
{{- $names := ternary (dict "username" "oauth_client_id" "oauthTokenEndpointUri" "oauth_token_url" "scopes" "oauth_scope") (dict "username" "sasl_username") $isOauth -}}
{{- range $parameter, $setting := $names -}}
{{- if hasKey $kafka $setting -}}
{{- $env = append $env (dict "parameter" $parameter "name" (include "stocklock.variable" (list "kafka" $setting)) "containerName" $.component) -}}
{{- end -}}
{{- end -}}
{{- $secrets = append $secrets (dict "parameter" "password" "name" $values.secret.name "key" (ternary $keys.oauth_client_secret $keys.sasl_password $isOauth)) -}}
{{- end -}}
{{- if has $protocol (list "ssl" "sasl_ssl") -}}
{{- range $parameter, $name := dict "ca" "ssl_ca" "cert" "ssl_certificate" "key" "ssl_key" -}}
{{- with dig (printf "%s_pem" $name) "" $keys -}}
{{- $secrets = append $secrets (dict "parameter" $parameter "name" $values.secret.name "key" .) -}}
{{- end -}}
{{- $setting := printf "%s_location" $name -}}
{{- with dig $setting "" $kafka -}}
{{- if not (regexMatch "^/etc/stocklock/tls/[^/]+$" .) -}}
{{- fail (printf "config.kafka.%s is %s, and KEDA reads certificates from tls.secretName alone: put it into that secret, or name a TriggerAuthentication of your own in keda.triggerAuthentication" $setting .) -}}
{{- end -}}
{{- $secrets = append $secrets (dict "parameter" $parameter "name" $values.tls.secretName "key" (base .)) -}}
{{- end -}}
{{- end -}}
{{- with $keys.ssl_key_password -}}
{{- $secrets = append $secrets (dict "parameter" "keyPassword" "name" $values.secret.name "key" .) -}}
{{- end -}}
{{- end -}}
{{- $spec := dict -}}
{{- if $env -}}{{- $_ := set $spec "env" $env -}}{{- end -}}
{{- if $secrets -}}{{- $_ := set $spec "secretTargetRef" $secrets -}}{{- end -}}
{{- toYaml $spec -}}
{{- end -}}
