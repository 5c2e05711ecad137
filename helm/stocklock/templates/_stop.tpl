{{/* The seconds of a duration such as 20s or 1m30s. */}}
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
