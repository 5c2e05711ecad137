{{/* Takes a dict of root and component. The rules of connections to a pod; none for those that serve nothing. */}}
{{- define "stocklock.allowedIn" -}}
{{- $ingress := .root.Values.networkPolicy.ingress -}}
{{- if has .component (list "ingest" "worker" "compensator") -}}
{{- if eq .component "ingest" }}
- ports:
    - {port: 8080, protocol: TCP}
  {{- with $ingress.http.from }}
  from:
    {{- toYaml . | nindent 4 }}
  {{- end }}
# The command line in the pods of the other roles.
- ports:
    - {port: 8080, protocol: TCP}
  from:
    - podSelector:
        matchLabels:
          {{- include "stocklock.selector" (dict "root" .root) | nindent 10 }}
{{- end }}
- ports:
    - {port: 9464, protocol: TCP}
  {{- with $ingress.admin.from }}
  from:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- with $ingress.extra }}
{{ toYaml . }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* Takes a dict of ports, protocols and peers. One rule; without peers, to everywhere. */}}
{{- define "stocklock.rule" }}
- ports:
    {{- range $port := .ports }}
    {{- range $.protocols | default (list "TCP") }}
    - {port: {{ $port | int }}, protocol: {{ . }}}
    {{- end }}
    {{- end }}
  {{- with .to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Takes a dict of root and component. The rules of connections from a pod, each for what this configuration uses. */}}
{{- define "stocklock.allowedOut" -}}
{{- $config := .root.Values.config -}}
{{- $egress := .root.Values.networkPolicy.egress -}}
{{- include "stocklock.rule" (dict "ports" $egress.dns.ports "protocols" (list "UDP" "TCP") "to" $egress.dns.to) }}
{{- $brokers := list }}
{{- range splitList "," (include "stocklock.brokers" .root) }}
{{- $brokers = append $brokers (regexFind "[0-9]+$" .) }}
{{- end }}
{{- include "stocklock.rule" (dict "ports" ($egress.kafka.ports | default (uniq $brokers)) "to" $egress.kafka.to) }}
{{- include "stocklock.rule" $egress.mysql }}
{{- if and (eq (dig "lock" "strategy" "row" $config) "redlock") (has .component (list "worker" "compensator" "setup" "doctor")) }}
{{- include "stocklock.rule" $egress.redis }}
{{- end }}
{{- $urls := dict "schemaRegistry" (list (dig "schema_registry" "url" "" $config)) "tracing" (list .root.Values.tracing.endpoint) "identity" (list (dig "kafka" "oauth_token_url" "" $config) (dig "auth" "jwks_url" "" $config)) }}
{{- range $name, $used := $urls }}
{{- with compact $used }}
{{- $ports := list }}
{{- range . }}
{{- $ports = append $ports (include "stocklock.portOfUrl" .) }}
{{- end }}
{{- $rule := index $egress $name }}
{{- include "stocklock.rule" (dict "ports" ($rule.ports | default (uniq $ports)) "to" $rule.to) }}
{{- end }}
{{- end }}
# The command line uses the HTTP API.
- ports:
    - {port: 8080, protocol: TCP}
  to:
    - podSelector:
        matchLabels:
          {{- include "stocklock.selector" (dict "root" .root "component" "ingest") | nindent 10 }}
{{- with $egress.extra }}
{{ toYaml . }}
{{- end }}
{{- end -}}
