{{/* Names, labels, and what the services are. */}}

{{- define "waybill.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 42 | trimSuffix "-" -}}
{{- end -}}

{{/* Leaves room for the longest suffix, so that no name is longer than 63 characters. */}}
{{- define "waybill.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 42 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 42 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 42 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The services: their ports, and the stores that each of them needs. */}}
{{- define "waybill.services" -}}
ingestion: {port: 7701, stores: [database]}
extraction: {port: 7702, stores: [database, redis]}
embedding: {port: 7703, stores: [database, qdrant]}
relay: {port: 7704, stores: [database, redis, qdrant]}
{{- end -}}

{{/* What never changes in the life of an installation: (root, component). */}}
{{- define "waybill.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "waybill.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* (root, component, more labels). A label of ours can't be replaced. */}}
{{- define "waybill.labels" -}}
{{- $root := index . 0 -}}
{{- $ours := fromYaml (include "waybill.selectorLabels" .) -}}
{{- $_ := set $ours "app.kubernetes.io/version" $root.Chart.AppVersion -}}
{{- $_ := set $ours "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- $_ := set $ours "app.kubernetes.io/part-of" "waybill" -}}
{{- $_ := set $ours "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_") -}}
{{- $more := dict -}}
{{- if gt (len .) 2 -}}{{- $more = index . 2 -}}{{- end -}}
{{- merge $ours (deepCopy $more) (deepCopy $root.Values.commonLabels) | toYaml -}}
{{- end -}}

{{/* (root, more annotations): `annotations:` and its entries, or nothing. */}}
{{- define "waybill.annotations" -}}
{{- $all := merge (deepCopy (index . 1)) (deepCopy (index . 0).Values.commonAnnotations) -}}
{{- with $all -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* (base, over) as JSON: maps are merged, everything else is replaced. Sprig's own would not let
a `false` or an empty list replace anything. */}}
{{- define "waybill.overlay" -}}
{{- $out := deepCopy (index . 0) -}}
{{- range $key, $value := index . 1 -}}
{{- if and (kindIs "map" $value) (kindIs "map" (get $out $key)) -}}
{{- $_ := set $out $key (fromJson (include "waybill.overlay" (list (get $out $key) $value))) -}}
{{- else -}}
{{- $_ := set $out $key $value -}}
{{- end -}}
{{- end -}}
{{- toJson $out -}}
{{- end -}}

{{/* The settings of a component, with the defaults below them: (root, component), as JSON. */}}
{{- define "waybill.component" -}}
{{- $root := index . 0 -}}
{{- include "waybill.overlay" (list $root.Values.defaults (index $root.Values (index . 1))) -}}
{{- end -}}

{{/* (root, component, its settings) */}}
{{- define "waybill.serviceAccountName" -}}
{{- $account := (index . 2).serviceAccount -}}
{{- if $account.create -}}
{{- default (printf "%s-%s" (include "waybill.fullname" (index . 0)) (index . 1)) $account.name -}}
{{- else -}}
{{- default "default" $account.name -}}
{{- end -}}
{{- end -}}

{{- define "waybill.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- $tag := default .Chart.AppVersion $image.tag -}}
{{- if eq $tag "latest" -}}
{{- fail "image.tag: `latest` is another image tomorrow, and a rollback could not find the old one: name a version, or image.digest" -}}
{{- end -}}
{{- printf "%s:%s" $image.repository $tag -}}
{{- end -}}
{{- end -}}

{{/* "true" if `helm test` has all the services that it calls. */}}
{{- define "waybill.hasTests" -}}
{{- $values := .Values -}}
{{- if and $values.tests.enabled $values.ingestion.enabled $values.embedding.enabled $values.relay.enabled -}}
true
{{- end -}}
{{- end -}}

{{- define "waybill.scheme" -}}
{{- ternary "https" "http" .Values.tls.enabled -}}
{{- end -}}

{{/* The URL of a service inside the cluster: (root, service). */}}
{{- define "waybill.url" -}}
{{- $root := index . 0 -}}
{{- $port := (index (fromYaml (include "waybill.services" $root)) (index . 1)).port -}}
{{- printf "%s://%s-%s.%s.svc:%d" (include "waybill.scheme" $root) (include "waybill.fullname" $root) (index . 1) $root.Release.Namespace (int $port) -}}
{{- end -}}

{{- define "waybill.tlsSecret" -}}
{{- if .Values.tls.existingSecret -}}
{{- .Values.tls.existingSecret -}}
{{- else if .Values.tls.certManager.enabled -}}
{{- printf "%s-tls" (include "waybill.fullname" .) -}}
{{- else -}}
{{- fail "tls.enabled: name a Secret in tls.existingSecret, or set tls.certManager.enabled" -}}
{{- end -}}
{{- end -}}

{{/* The port of a URL: its own, or that of its scheme. */}}
{{- define "waybill.portOf" -}}
{{- $url := urlParse . -}}
{{- $port := regexFind ":[0-9]+$" $url.host -}}
{{- if $port -}}
{{- trimPrefix ":" $port -}}
{{- else -}}
{{- ternary "443" "80" (eq $url.scheme "https") -}}
{{- end -}}
{{- end -}}
