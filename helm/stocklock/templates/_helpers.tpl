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

{{/* Takes a dict of root and component. The labels by which pods are selected; they never change. */}}
{{- define "stocklock.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* The same, the versions and those of the values: the labels of everything but pods. Takes `extra` too. */}}
{{- define "stocklock.labels" -}}
{{- $own := include "stocklock.selector" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/version" .root.Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_") -}}
{{- merge $own (.extra | default dict) .root.Values.commonLabels | toYaml -}}
{{- end -}}

{{/* The labels of pods: no version, so that one of the chart alone restarts nothing. Takes `extra` too. */}}
{{- define "stocklock.podLabels" -}}
{{- merge (include "stocklock.selector" . | fromYaml) (.extra | default dict) .root.Values.commonLabels | toYaml -}}
{{- end -}}

{{/* The version of Kubernetes by its major and minor number. Vendors write a minor number such as 31+, and a server that was
     built from source has no semantic version at all. */}}
{{- define "stocklock.kubernetes" -}}
{{- with .Capabilities.KubeVersion -}}
{{- printf "%s.%s.0" (regexFind "[0-9]+" .Major) (regexFind "[0-9]+" .Minor) -}}
{{- end -}}
{{- end -}}

{{/* The partitions of a topic, or 0 where no value says so. */}}
{{- define "stocklock.partitions" -}}
{{- $partitions := int (dig "topics" "partitions" 0 .Values.config) -}}
{{- /* Without setup, somebody else creates the topics, and only a value says how many partitions they have. */}}
{{- if and (not $partitions) .Values.setup.enabled -}}
{{- $partitions = 12 -}}
{{- end -}}
{{- $partitions -}}
{{- end -}}

{{/* Takes a list of the root and a role. The role's largest number of pods, or 0 where KEDA has none. */}}
{{- define "stocklock.mostPods" -}}
{{- $root := index . 0 -}}
{{- $values := index $root.Values (index . 1) -}}
{{- if $values.keda.enabled -}}
{{- $values.keda.maxReplicas | default (include "stocklock.partitions" $root) | int -}}
{{- else -}}
{{- $values.replicas -}}
{{- end -}}
{{- end -}}

{{/* Fails where values that are right by themselves cannot work together. */}}
{{- define "stocklock.check" -}}
{{- $kubernetes := include "stocklock.kubernetes" . -}}
{{- if semverCompare "<1.25.0" $kubernetes -}}
{{- fail (printf "Kubernetes is %s, and the chart needs 1.25 or later" $kubernetes) -}}
{{- end -}}
{{- $partitions := include "stocklock.partitions" . | int -}}
{{- range $role := list "worker" "compensator" -}}
{{- $values := index $.Values $role -}}
{{- $name := ternary "keda.maxReplicas" "replicas" $values.keda.enabled -}}
{{- $most := include "stocklock.mostPods" (list $ $role) | int -}}
{{- if and $partitions (gt $most $partitions) -}}
{{- fail (printf "%s.%s is %d, and a topic has %d partitions: the others would find no work. If the topics have more, set config.topics.partitions to their number" $role $name $most $partitions) -}}
{{- end -}}
{{- if $values.keda.enabled -}}
{{- if not $most -}}
{{- fail (printf "%s.keda.maxReplicas is not set, and setup.enabled is false: set it, or config.topics.partitions" $role) -}}
{{- end -}}
{{- if lt $most (int $values.keda.minReplicas) -}}
{{- fail (printf "%s.keda.minReplicas is %d, and the largest number of pods is %d" $role (int $values.keda.minReplicas) $most) -}}
{{- end -}}
{{- end -}}
{{- $longest := 52 -}}
{{- $full := printf "%s-%s" (include "stocklock.fullname" $) $role -}}
{{- if and (eq $values.kind "StatefulSet") (gt (len $full) $longest) -}}
{{- fail (printf "%s.kind is StatefulSet, and its name %s has more than %d characters: set fullnameOverride" $role $full $longest) -}}
{{- end -}}
{{- end -}}
{{- include "stocklock.checkAutoscaling" . -}}
{{- include "stocklock.checkBudgets" . -}}
{{- include "stocklock.checkVariables" . -}}
{{- include "stocklock.checkFiles" . -}}
{{- if and (dig "client" "token" "" .Values.secret.keys) (dig "client" "token_file" "" .Values.config) -}}
{{- fail "secret.keys.client.token and config.client.token_file are both set: only one of them can be" -}}
{{- end -}}
{{- $deadline := dig "stop" "deadline" "20s" .Values.config -}}
{{- $beside := include "stocklock.secondsBesideDeadline" . | int -}}
{{- $least := int (include "stocklock.seconds" $deadline) | add $beside | int -}}
{{- if lt (int (include "stocklock.gracePeriod" .)) $least -}}
{{- fail (printf "terminationGracePeriodSeconds is %d, and a stop takes up to %d s: config.stop.deadline (%s) and %d s" (int (include "stocklock.gracePeriod" .)) $least $deadline $beside) -}}
{{- end -}}
{{- end -}}

{{- define "stocklock.checkAutoscaling" -}}
{{- $hpa := .Values.ingest.autoscaling -}}
{{- if $hpa.enabled -}}
{{- if gt (int $hpa.minReplicas) (int $hpa.maxReplicas) -}}
{{- fail (printf "ingest.autoscaling.minReplicas is %d, and maxReplicas is %d" (int $hpa.minReplicas) (int $hpa.maxReplicas)) -}}
{{- end -}}
{{- range $resource, $key := dict "cpu" "targetCPUUtilizationPercentage" "memory" "targetMemoryUtilizationPercentage" -}}
{{- if and (index $hpa $key) (not (dig "requests" $resource "" $.Values.ingest.resources)) -}}
{{- fail (printf "ingest.autoscaling.%s is a share of ingest.resources.requests.%s, and that is not set" $key $resource) -}}
{{- end -}}
{{- end -}}
{{- if not (or $hpa.targetCPUUtilizationPercentage $hpa.targetMemoryUtilizationPercentage $hpa.metrics) -}}
{{- fail "ingest.autoscaling.enabled is true, and it has no metric: set targetCPUUtilizationPercentage or metrics" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Takes a list of the root and a role. The role's least number of pods. */}}
{{- define "stocklock.leastPods" -}}
{{- $values := index (index . 0).Values (index . 1) -}}
{{- if dig "autoscaling" "enabled" false $values -}}
{{- $values.autoscaling.minReplicas -}}
{{- else if dig "keda" "enabled" false $values -}}
{{- $values.keda.minReplicas -}}
{{- else -}}
{{- $values.replicas -}}
{{- end -}}
{{- end -}}

{{/* A budget that never lets a pod go would keep its node from being drained for ever. */}}
{{- define "stocklock.checkBudgets" -}}
{{- range $role := list "ingest" "worker" "compensator" -}}
{{- $budget := (index $.Values $role).podDisruptionBudget -}}
{{- $least := include "stocklock.leastPods" (list $ $role) | int -}}
{{- if and $budget.enabled (ne (toString $budget.minAvailable) "") -}}
{{- $isShare := hasSuffix "%" (toString $budget.minAvailable) -}}
{{- $stay := trimSuffix "%" (toString $budget.minAvailable) | int -}}
{{- if and $isShare (ge $stay 100) -}}
{{- fail (printf "%s.podDisruptionBudget.minAvailable is %s: no node with such a pod could be drained" $role $budget.minAvailable) -}}
{{- end -}}
{{- if and (not $isShare) $least (ge $stay $least) -}}
{{- fail (printf "%s.podDisruptionBudget.minAvailable is %d, and the least number of pods is %d: no node with such a pod could be drained" $role $stay $least) -}}
{{- end -}}
{{- else if and $budget.enabled (eq 0 (trimSuffix "%" (toString $budget.maxUnavailable) | int)) -}}
{{- fail (printf "%s.podDisruptionBudget.maxUnavailable is %v: no node with such a pod could be drained" $role $budget.maxUnavailable) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A file that no secret brings would keep every pod from starting. */}}
{{- define "stocklock.checkFiles" -}}
{{- $mounts := list -}}
{{- range .Values.extraVolumeMounts -}}
{{- $mounts = append $mounts .mountPath -}}
{{- end -}}
{{- if not (or .Values.tls.secretName (has "/etc/stocklock/tls" $mounts)) -}}
{{- range $section, $settings := .Values.config -}}
{{- range $key, $value := $settings -}}
{{- if hasPrefix "/etc/stocklock/tls/" (toString $value) -}}
{{- fail (printf "config.%s.%s is %s, and tls.secretName is not set" $section $key $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A variable that is there twice has the value of the later one: two places would say different things. */}}
{{- define "stocklock.checkVariables" -}}
{{- range $where := list "" "ingest" "worker" "compensator" -}}
{{- $values := ternary $.Values (index $.Values ($where | default "ingest")) (eq $where "") -}}
{{- $role := $where | default "worker" -}}
{{- $component := dict "root" $ "component" $role "values" (index $.Values $role) -}}
{{- $own := list -}}
{{- range include "stocklock.ownEnv" $component | fromYamlArray -}}
{{- $own = append $own .name -}}
{{- end -}}
{{- range $values.extraEnv -}}
{{- if has .name $own -}}
{{- fail (printf "%sextraEnv: the chart sets %s already, by another value" (ternary "" (printf "%s." $where) (eq $where "")) .name) -}}
{{- end -}}
{{- end -}}
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

{{/* What comes before and after a stop: the sleep of ingest, 5 s at least, and 5 s. */}}
{{- define "stocklock.secondsBesideDeadline" -}}
{{- max 5 (int .Values.ingest.preStopSleepSeconds) | add 5 -}}
{{- end -}}

{{/* How long Kubernetes waits for a pod: as configured, or the stop's deadline, and what comes before and after it. */}}
{{- define "stocklock.gracePeriod" -}}
{{- $deadline := dig "stop" "deadline" "20s" .Values.config -}}
{{- $default := include "stocklock.seconds" $deadline | int | add (include "stocklock.secondsBesideDeadline" . | int) -}}
{{- .Values.terminationGracePeriodSeconds | default $default | int -}}
{{- end -}}

{{/* Takes a URL. Its port, or that of its scheme. */}}
{{- define "stocklock.portOfUrl" -}}
{{- $port := regexFind ":[0-9]+$" (urlParse .).host -}}
{{- if $port -}}
{{- trimPrefix ":" $port -}}
{{- else -}}
{{- ternary "443" "80" (hasPrefix "https" .) -}}
{{- end -}}
{{- end -}}

{{/* The brokers as HOST:PORT, comma separated: as the settings take them, without schemes and blanks. */}}
{{- define "stocklock.brokers" -}}
{{- $brokers := list -}}
{{- range splitList "," (dig "kafka" "brokers" "kafka:9092" .Values.config) -}}
{{- $broker := regexReplaceAll "^[A-Za-z_]+://" (trim .) "" -}}
{{- if $broker -}}
{{- $brokers = append $brokers (ternary $broker (printf "%s:9092" $broker) (regexMatch ":[0-9]+$" (regexReplaceAll "\\[[^\\]]*\\]" $broker ""))) -}}
{{- end -}}
{{- end -}}
{{- join "," $brokers -}}
{{- end -}}
