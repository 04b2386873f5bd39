{{- define "zuulbuild.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "zuulbuild.fullname" -}}
{{- $name := include "zuulbuild.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "zuulbuild.selector" -}}
app.kubernetes.io/name: {{ include "zuulbuild.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "zuulbuild.operator.selector" -}}
{{ include "zuulbuild.selector" . }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "zuulbuild.gearman.selector" -}}
{{ include "zuulbuild.selector" . }}
app.kubernetes.io/component: gearman
{{- end }}

{{- define "zuulbuild.labels" -}}
{{ include "zuulbuild.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of Pods: without versions, so that a Pod is replaced only when something it runs has changed. */}}
{{- define "zuulbuild.podLabels" -}}
{{ include "zuulbuild.selector" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "zuulbuild.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "zuulbuild.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "zuulbuild.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{/* What the restricted level of Pod Security asks for, and a root file system nothing can be written to. */}}
{{- define "zuulbuild.podSecurityContext" -}}
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- with .Values.podSecurityContext }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "zuulbuild.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "zuulbuild.pagesUrl" -}}
{{- if .Values.pages.url }}
{{- .Values.pages.url }}
{{- else if .Values.pages.ingress.enabled }}
{{- printf "%s://%s" (ternary "https" "http" (ne .Values.pages.ingress.tlsSecret "")) .Values.pages.ingress.host }}
{{- else if .Values.pages.httpRoute.enabled }}
{{- printf "https://%s" .Values.pages.httpRoute.host }}
{{- else }}
{{- $port := int .Values.pages.service.port }}
{{- printf "http://%s.%s.svc%s" (include "zuulbuild.fullname" .) .Release.Namespace (eq $port 80 | ternary "" (printf ":%d" $port)) }}
{{- end }}
{{- end }}

{{/*
HOST[:PORT] of the string .address of the value .where, taken apart as the operator does, as a JSON object with host, port, number (of the port) and whole
(HOST:PORT). The operator, which refuses its whole configuration, would say it too late.
*/}}
{{- define "zuulbuild.address" -}}
{{- $port := "4730" }}
{{- if regexMatch ":[^\\]]*$" .address }}{{ $port = regexFind "[^:]*$" .address }}{{ end }}
{{- $number := regexReplaceAll "^0+" $port "" }}
{{- $right := regexMatch "^(\\[[^]\\pZ\\p{Cc}/@=,[]+\\]|[^]\\pZ\\p{Cc}/@=,:[]+)(:[0-9]+)?$" .address }}
{{- if not (and $right (regexMatch "^[1-9][0-9]{0,4}$" $number) (le (int $number) 65535)) }}
{{- fail (printf "%s: HOST[:PORT] was expected, with an IPv6 address in brackets and a port from 1 to 65535, not %q" .where .address) }}
{{- end }}
{{- $host := regexReplaceAll ":[^]:]*$" .address "" }}
{{- if hasPrefix "[" .address }}{{ $host = regexFind "[^][]+" .address }}{{ end }}
{{- $whole := printf (contains ":" $host | ternary "[%s]:%s" "%s:%s") $host $port }}
{{- dict "host" $host "port" $port "number" (int $number) "whole" $whole | toJson }}
{{- end }}

{{/* The servers as a JSON object with the list `servers`: those of the values, then the embedded one, each as `zuulbuild operator --help` has it. */}}
{{- define "zuulbuild.servers" -}}
{{- $servers := list }}
{{- $names := dict }}
{{- $addresses := dict }}
{{- $embedded := printf "%s-gearman.%s.svc:%v" (include "zuulbuild.fullname" .) .Release.Namespace .Values.gearman.embedded.service.port }}
{{- if .Values.gearman.embedded.enabled }}
{{- $_ := set $names "embedded" "gearman.embedded" }}
{{- $_ := set $addresses (lower $embedded) "gearman.embedded" }}
{{- end }}
{{- range $i, $server := .Values.gearman.servers }}
{{- $where := printf "gearman.servers[%d]" $i }}
{{- $address := include "zuulbuild.address" (dict "where" (printf "%s.address" $where) "address" $server.address) | fromJson }}
{{- $default := $address.host }}
{{- if ne $address.port "4730" }}{{ $default = printf "%s-%s" $default $address.port }}{{ end }}
{{- $name := $server.name | default (regexReplaceAll "[^-A-Za-z0-9_.]" $default "-" | trimAll "-_.") }}
{{- if or (eq $name "") (gt (len $name) 63) }}
{{- fail (printf "%s.name: one of at most 63 characters was expected, because %q, made of the address, cannot be the value of a label" $where $name) }}
{{- end }}
{{- with get $names $name }}
{{- fail (printf "%s.name: %q is that of %s already; each server needs a name of its own, and one without has its host's" $where $name .) }}
{{- end }}
{{- with get $addresses (lower $address.whole) }}
{{- fail (printf "%s.address: %s is that of %s already; its builds could not be told apart" $where $address.whole .) }}
{{- end }}
{{- $_ := set $names $name $where }}
{{- $_ := set $addresses (lower $address.whole) $where }}
{{- $entry := dict "address" $server.address }}
{{- with $server.name }}{{ $_ := set $entry "name" . }}{{ end }}
{{- if hasKey $server "tls" }}
{{- $tls := dict }}
{{- with $server.tls.serverName }}{{ $_ := set $tls "serverName" . }}{{ end }}
{{- if $server.tls.caSecret }}{{ $_ := set $tls "caFile" (printf "/etc/zuulbuild/tls/%d/ca.crt" $i) }}{{ end }}
{{- if $server.tls.clientSecret }}
{{- $_ := set $tls "certFile" (printf "/etc/zuulbuild/tls/%d/tls.crt" $i) }}
{{- $_ := set $tls "keyFile" (printf "/etc/zuulbuild/tls/%d/tls.key" $i) }}
{{- end }}
{{- $_ := set $entry "tls" $tls }}
{{- end }}
{{- $servers = append $servers $entry }}
{{- end }}
{{- if .Values.gearman.embedded.enabled }}
{{- $servers = append $servers (dict "name" "embedded" "address" $embedded) }}
{{- end }}
{{- dict "servers" $servers | toJson }}
{{- end }}

{{/* The options of the operator as `--config` has them, as a JSON object; docs/configuration.md tells what each means. */}}
{{- define "zuulbuild.configuration" -}}
{{- $options := dict
  "manager" .Values.manager
  "max-builds" (int .Values.maxBuilds)
  "grace-period" (printf "%ds" (int .Values.gracePeriodSeconds))
  "drain-timeout" (printf "%ds" (int .Values.drainTimeoutSeconds))
  "leader-deployment" (include "zuulbuild.fullname" .)
  "pages-address" ":8080"
  "pages-url" (include "zuulbuild.pagesUrl" .)
  "health-address" ":8081"
  "metrics-address" (ternary (printf ":%d" (int .Values.metrics.port)) "0" .Values.metrics.enabled)
  "metrics-secure" (include "zuulbuild.secureMetrics" . | eq "yes")
  "log-level" .Values.logLevel
}}
{{- if include "zuulbuild.metricsCertificate" . }}{{ $_ := set $options "metrics-cert-dir" "/etc/zuulbuild/metrics" }}{{ end }}
{{- with .Values.tracing.endpoint }}
{{- $port := regexFind ":[0-9]+$" (urlParse .).host | trimPrefix ":" | default "80" }}
{{- if not (and (regexMatch "^[1-9][0-9]{0,4}$" $port) (le (int $port) 65535)) }}
{{- fail (printf "tracing.endpoint: a port from 1 to 65535 was expected, not %s" $port) }}
{{- end }}
{{- $_ := set $options "trace-endpoint" . }}
{{- end }}
{{- if eq .Values.scope "namespaces" }}
{{- $names := list }}
{{- range .Values.buildNamespaces }}{{ $names = append $names .name }}{{ end }}
{{- $_ := set $options "namespace" $names }}
{{- end }}
{{- with (include "zuulbuild.servers" . | fromJson).servers }}{{ $_ := set $options "servers" . }}{{ end }}
{{- $options | toJson }}
{{- end }}

{{/* Of a Service, what .service of the values, which is at .where, says, but for its port and annotations. */}}
{{- define "zuulbuild.serviceType" -}}
{{- $where := .where }}
{{- with .service }}
{{- if and .externalTrafficPolicy (eq .type "ClusterIP") }}
{{- fail (printf "%s.externalTrafficPolicy: that is for type NodePort or LoadBalancer, not %s" $where .type) }}
{{- end }}
{{- range $key := list "loadBalancerClass" "loadBalancerSourceRanges" }}
{{- if and (get $.service $key) (ne $.service.type "LoadBalancer") }}
{{- fail (printf "%s.%s: that is for type LoadBalancer, not %s" $where $key $.service.type) }}
{{- end }}
{{- end }}
type: {{ .type }}
{{- with .externalTrafficPolicy }}
externalTrafficPolicy: {{ . }}
{{- end }}
{{- with .loadBalancerClass }}
loadBalancerClass: {{ . | quote }}
{{- end }}
{{- with .loadBalancerSourceRanges }}
loadBalancerSourceRanges:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}
{{- end }}

{{/* The Secret with the certificate of the metrics, or nothing. */}}
{{- define "zuulbuild.metricsCertificate" -}}
{{- if include "zuulbuild.secureMetrics" . }}{{ .Values.metrics.certSecret }}{{ end }}
{{- end }}

{{/* Not empty where metrics are served by HTTPS. */}}
{{- define "zuulbuild.secureMetrics" -}}
{{- if and .Values.metrics.enabled .Values.metrics.secure }}yes{{ end }}
{{- end }}

{{/* Volumes with the secrets of server number .index. One that is missing costs the connections to that server, and not the Pod with all others. */}}
{{- define "zuulbuild.tlsVolume" -}}
- name: tls-{{ .index }}
  projected:
    defaultMode: 0440
    sources:
    {{- with .tls.caSecret }}
    - secret: {name: {{ .name | quote }}, optional: true, items: [{key: {{ .key | default "ca.crt" | quote }}, path: ca.crt}]}
    {{- end }}
    {{- with .tls.clientSecret }}
    - secret: {name: {{ . | quote }}, optional: true, items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]}
    {{- end }}
{{- end }}

{{/*
The annotations of an object of .kind, one of our own, as a JSON list: it is there once for each of them. Where the definitions come with this very
installation, Helm could not tell what these kinds are before it has installed them. Then the objects are hooks after it, marked so that the next upgrade
makes them part of the release; and, because Helm forgets hooks, once more hooks that an uninstallation makes anew and takes away.
*/}}
{{- define "zuulbuild.ownKind" -}}
{{- if .kind | printf "zuulbuild.dev/v1alpha1/%s" | .root.Capabilities.APIVersions.Has }}
{{- list dict | toJson }}
{{- else }}
{{- $made := dict
  "helm.sh/hook" "post-install,post-upgrade,post-rollback" "helm.sh/hook-delete-policy" "hook-failed"
  "meta.helm.sh/release-name" .root.Release.Name "meta.helm.sh/release-namespace" .root.Release.Namespace
}}
{{- $taken := dict "helm.sh/hook" "pre-delete" "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded" }}
{{- list $made $taken | toJson }}
{{- end }}
{{- end }}

{{/*
The entries of buildNamespaces that the chart makes, as a JSON object with the list `namespaces`, each with all its settings. What is not said is safe:
builds run what anybody proposed.
*/}}
{{- define "zuulbuild.madeNamespaces" -}}
{{- $made := list }}
{{- $names := list }}
{{- range $i, $given := .Values.buildNamespaces }}
{{- $where := printf "buildNamespaces[%d] (%s)" $i $given.name }}
{{- if not (regexMatch "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$" $given.name) }}
{{- fail (printf "%s.name: a namespace's is of at most 63 lowercase letters, digits and hyphens, and no hyphen first or last" $where) }}
{{- end }}
{{- if has $given.name $names }}
{{- fail (printf "%s.name: that is the name of another entry already: say all there is to say in one" $where) }}
{{- end }}
{{- $names = append $names $given.name }}
{{- if eq $given.name $.Release.Namespace }}
{{- fail (printf "%s: builds run what anybody proposed for review, so they cannot share the namespace of the operator" $where) }}
{{- end }}
{{- if and $given.readSecrets (not $.Values.rbac.create) }}
{{- fail (printf "%s.readSecrets: without rbac.create the chart gives the operator no such right: give it one yourself, with a Role there" $where) }}
{{- end }}
{{- if $given.create }}
{{- $policy := $given.networkPolicy | default dict }}
{{- $quota := dict "pods" (add $.Values.maxBuilds 50 | toString) "services.loadbalancers" "0" "services.nodeports" "0" }}
{{- $made = append $made (dict
  "name" $given.name "keep" ($given.keep | default false)
  "labels" ($given.labels | default dict) "annotations" ($given.annotations | default dict)
  "podSecurity" ($given.podSecurity | default "restricted")
  "quota" (hasKey $given "quota" | ternary $given.quota $quota) "limits" ($given.limits | default list)
  "closed" (hasKey $policy "enabled" | ternary $policy.enabled true)
  "dns" (hasKey $policy "dns" | ternary $policy.dns true) "egress" ($policy.egress | default list)
) }}
{{- else }}
{{- range $key := list "keep" "labels" "annotations" "podSecurity" "quota" "limits" "networkPolicy" }}
{{- if hasKey $given $key }}
{{- fail (printf "%s.%s: only a namespace that the chart makes is given that: say create: true, or see to it yourself" $where $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- dict "namespaces" $made | toJson }}
{{- end }}

{{- define "zuulbuild.firstBuildNamespace" -}}
{{- if .Values.buildNamespaces }}{{ (first .Values.buildNamespaces).name }}{{ end }}
{{- end }}
