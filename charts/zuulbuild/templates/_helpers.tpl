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

{{- define "zuulbuild.test.selector" -}}
{{ include "zuulbuild.selector" . }}
app.kubernetes.io/component: test
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
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
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

{{/* The servers as a JSON object with the list `servers`: those of the values, then the embedded one, each as `zuulbuild operator --help` has it. */}}
{{- define "zuulbuild.servers" -}}
{{- $servers := list }}
{{- range $i, $server := .Values.gearman.servers }}
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
{{- $address := printf "%s-gearman.%s.svc:%v" (include "zuulbuild.fullname" .) .Release.Namespace .Values.gearman.embedded.service.port }}
{{- $servers = append $servers (dict "name" "embedded" "address" $address) }}
{{- end }}
{{- dict "servers" $servers | toJson }}
{{- end }}

{{/* Not empty where metrics are served by HTTPS. */}}
{{- define "zuulbuild.secureMetrics" -}}
{{- if and .Values.metrics.enabled .Values.metrics.secure }}yes{{ end }}
{{- end }}

{{/* Volumes with the secrets of server number .index. */}}
{{- define "zuulbuild.tlsVolume" -}}
- name: tls-{{ .index }}
  projected:
    defaultMode: 0440
    sources:
    {{- with .tls.caSecret }}
    - secret: {name: {{ .name | quote }}, items: [{key: {{ .key | default "ca.crt" | quote }}, path: ca.crt}]}
    {{- end }}
    {{- with .tls.clientSecret }}
    - secret: {name: {{ . | quote }}, items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]}
    {{- end }}
{{- end }}

{{/*
Metadata for objects of our own kinds. Where the definitions come with this very installation, Helm could not tell what these kinds are before it has
installed them: then they are hooks after it, marked so that the next upgrade makes them part of the release.
*/}}
{{- define "zuulbuild.ownKind" -}}
{{- if .kind | printf "zuulbuild.dev/v1alpha1/%s" | .root.Capabilities.APIVersions.Has | not }}
annotations:
  helm.sh/hook: post-install,post-upgrade
  helm.sh/hook-delete-policy: hook-failed
  meta.helm.sh/release-name: {{ .root.Release.Name }}
  meta.helm.sh/release-namespace: {{ .root.Release.Namespace }}
{{- end }}
{{- end }}

{{- define "zuulbuild.firstBuildNamespace" -}}
{{- if .Values.buildNamespaces }}{{ (first .Values.buildNamespaces).name }}{{ end }}
{{- end }}
