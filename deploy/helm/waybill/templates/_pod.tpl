{{/* What pods are made of. */}}

{{/* `config` as variables: (prefix, map). Whole numbers come as floats out of YAML. */}}
{{- define "waybill.configEnv" -}}
{{- $prefix := index . 0 -}}
{{- range $key, $value := index . 1 }}
{{- $name := printf "%s%s" $prefix (upper $key) }}
{{- if kindIs "map" $value }}
{{- include "waybill.configEnv" (list (printf "%s__" $name) $value) }}
{{- else }}
- name: {{ $name }}
  {{- if kindIs "slice" $value }}
  value: {{ toJson $value | quote }}
  {{- else if and (kindIs "float64" $value) (eq (floor $value) $value) }}
  value: {{ printf "%.0f" $value | quote }}
  {{- else }}
  value: {{ toString $value | quote }}
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Those that a service calls with certificates of their own, as a list of {file, env, tls}: how their
files' names and their variables begin, and their values: (root, service). */}}
{{- define "waybill.tlsParts" -}}
{{- $root := index . 0 -}}
{{- $service := index . 1 -}}
{{- $values := $root.Values -}}
{{- $callees := list -}}
{{- range without (index (fromYaml (include "waybill.services" $root)) $service).stores "database" -}}
{{- $callees = append $callees (dict "file" . "env" (upper .) "tls" (index $values .).tls) -}}
{{- end -}}
{{- if $values.telemetry.otlpEndpoint -}}
{{- $callees = append $callees (dict "file" "telemetry" "env" "TELEMETRY" "tls" $values.telemetry.tls) -}}
{{- end -}}
{{- $model := $values.embedding.model -}}
{{- if and (eq $service "embedding") (has $model.kind (list "openai" "tei")) -}}
{{- $callees = append $callees (dict "file" "embedding" "env" (printf "EMBEDDING__MODEL__%s" (upper $model.kind)) "tls" (index $model $model.kind).tls) -}}
{{- end -}}
{{- if and (eq $service "extraction") (eq $values.extraction.provider "openai") -}}
{{- $callees = append $callees (dict "file" "extraction" "env" "EXTRACTION__OPENAI" "tls" $values.extraction.openai.tls) -}}
{{- end -}}
{{- $parts := list -}}
{{- range $callees -}}
{{- if .tls.existingSecret -}}
{{- $parts = append $parts . -}}
{{- end -}}
{{- end -}}
{{- toYaml $parts -}}
{{- end -}}

{{/* The Secrets of a component, as a list of {secret, key, file}: (root, component). One file each
under /etc/waybill/secrets: unlike variables, files are not inherited, printed or dumped. */}}
{{- define "waybill.secretFiles" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := $root.Values -}}
{{- $files := list -}}
{{- if eq $component "migrations" -}}
{{- $own := $values.migrations.database -}}
{{- if $own.existingSecret -}}
{{- $files = append $files (dict "secret" $own.existingSecret "key" $own.urlKey "file" "database-url") -}}
{{- else -}}
{{- $files = append $files (dict "secret" $values.database.existingSecret "key" $values.database.urlKey "file" "database-url") -}}
{{- end -}}
{{- else -}}
{{- $service := index (fromYaml (include "waybill.services" $root)) $component -}}
{{- range $service.stores -}}
{{- $store := index $values . -}}
{{- $files = append $files (dict "secret" $store.existingSecret "key" $store.urlKey "file" (printf "%s-url" .)) -}}
{{- end -}}
{{- if and (has "qdrant" $service.stores) $values.qdrant.apiKeyKey -}}
{{- $files = append $files (dict "secret" $values.qdrant.existingSecret "key" $values.qdrant.apiKeyKey "file" "qdrant-api-key") -}}
{{- end -}}
{{- if $values.auth.bootstrapKeyKey -}}
{{- $files = append $files (dict "secret" $values.auth.existingSecret "key" $values.auth.bootstrapKeyKey "file" "bootstrap-key") -}}
{{- end -}}
{{- if has $component (list "embedding" "relay") -}}
{{- $files = append $files (dict "secret" $values.auth.existingSecret "key" $values.auth.serviceKeyKey "file" "service-key") -}}
{{- end -}}
{{- range $part := fromYamlArray (include "waybill.tlsParts" .) -}}
{{- $tls := $part.tls -}}
{{- range $file, $key := dict "ca.crt" $tls.caKey "tls.crt" $tls.certKey "tls.key" $tls.keyKey -}}
{{- if $key -}}
{{- $files = append $files (dict "secret" $tls.existingSecret "key" $key "file" (printf "%s-%s" $part.file $file)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $values.telemetry.headersSecret -}}
{{- $files = append $files (dict "secret" $values.telemetry.headersSecret "key" $values.telemetry.headersKey "file" "otlp-headers") -}}
{{- end -}}
{{- if eq $component "embedding" -}}
{{- $model := $values.embedding.model -}}
{{- if and (has $model.kind (list "openai" "tei")) (index $model $model.kind).existingSecret -}}
{{- $provider := index $model $model.kind -}}
{{- $files = append $files (dict "secret" $provider.existingSecret "key" $provider.apiKeyKey "file" "embedding-api-key") -}}
{{- end -}}
{{- end -}}
{{- if and (eq $component "extraction") (eq $values.extraction.provider "openai") $values.extraction.openai.existingSecret -}}
{{- $provider := $values.extraction.openai -}}
{{- $files = append $files (dict "secret" $provider.existingSecret "key" $provider.apiKeyKey "file" "extraction-api-key") -}}
{{- end -}}
{{- end -}}
{{- toYaml $files -}}
{{- end -}}

{{/* The volume of those files: (root, component). */}}
{{- define "waybill.secretVolume" -}}
- name: secrets
  projected:
    # Readable by the pod's group, which is fsGroup, and by nobody else.
    defaultMode: 0440
    sources:
      {{- range fromYamlArray (include "waybill.secretFiles" .) }}
      - secret:
          name: {{ .secret }}
          items:
            - key: {{ .key }}
              path: {{ .file }}
      {{- end }}
{{- end -}}

{{/* All variables of a component's program: (root, component, its settings). Of two values for one name the
later would win without a word. */}}
{{- define "waybill.env" -}}
{{- $root := index . 0 -}}
{{- $ours := include "waybill.ownEnv" . -}}
{{- $more := include "waybill.configEnv" (list "WAYBILL_" $root.Values.config) -}}
{{- $seen := dict -}}
{{- range concat (fromYamlArray $ours) (fromYamlArray $more) (index . 2).extraEnv -}}
{{- if hasKey $seen .name -}}
{{- fail (printf "%s is set twice: by the chart's values or `config`, and by `config` or `extraEnv`. Keep one" .name) -}}
{{- end -}}
{{- $_ := set $seen .name true -}}
{{- end -}}
{{- $ours -}}
{{- $more -}}
{{- with (index . 2).extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Variables that the chart's own values make: (root, component). */}}
{{- define "waybill.ownEnv" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := $root.Values -}}
{{- $variables := dict
  "database-url" "WAYBILL_DATABASE__URL_FILE"
  "redis-url" "WAYBILL_REDIS__URL_FILE"
  "qdrant-url" "WAYBILL_QDRANT__URL_FILE"
  "qdrant-api-key" "WAYBILL_QDRANT__API_KEY_FILE"
  "bootstrap-key" "WAYBILL_AUTH__BOOTSTRAP_KEY_FILE"
  "service-key" "WAYBILL_AUTH__SERVICE_KEY_FILE"
  "otlp-headers" "WAYBILL_TELEMETRY__OTLP_HEADERS_FILE"
  "embedding-api-key" (printf "WAYBILL_EMBEDDING__MODEL__%s__API_KEY_FILE" (upper $values.embedding.model.kind))
  "extraction-api-key" "WAYBILL_EXTRACTION__OPENAI__API_KEY_FILE" -}}
{{- $parts := list -}}
{{- if ne $component "migrations" -}}
{{- $parts = fromYamlArray (include "waybill.tlsParts" .) -}}
{{- end -}}
{{- range $part := $parts -}}
{{- range $file, $key := dict "ca.crt" "CA_FILE" "tls.crt" "CERT_FILE" "tls.key" "KEY_FILE" -}}
{{- $_ := set $variables (printf "%s-%s" $part.file $file) (printf "WAYBILL_%s__TLS__%s" $part.env $key) -}}
{{- end -}}
{{- end -}}
- name: WAYBILL_LOG
  value: {{ $values.logging.filter | quote }}
- name: WAYBILL_LOG__FORMAT
  value: {{ $values.logging.format | quote }}
{{- range fromYamlArray (include "waybill.secretFiles" .) }}
- name: {{ index $variables .file }}
  value: /etc/waybill/secrets/{{ .file }}
{{- end }}
- name: WAYBILL_DATABASE__MAX_CONNECTIONS
  value: {{ int $values.database.maxConnections | quote }}
{{- if ne $component "migrations" }}
{{- $service := index (fromYaml (include "waybill.services" $root)) $component }}
- name: WAYBILL_LISTEN__{{ upper $component }}
  value: 0.0.0.0:{{ $service.port }}
- name: WAYBILL_ADMIN__LISTEN
  value: 0.0.0.0:9464
- name: WAYBILL_AUTH__MODE
  value: keys
- name: WAYBILL_SHUTDOWN__DEADLINE_S
  value: {{ int $values.shutdown.deadlineSeconds | quote }}
{{- if has "redis" $service.stores }}
- name: WAYBILL_REDIS__PREFIX
  value: {{ $values.redis.prefix | quote }}
{{- end }}
{{- with $values.telemetry.otlpEndpoint }}
- name: WAYBILL_TELEMETRY__OTLP_ENDPOINT
  value: {{ . | quote }}
- name: WAYBILL_TELEMETRY__TRACE_RATIO
  value: {{ $values.telemetry.traceRatio | toString | quote }}
{{- end }}
{{- range $part := $parts }}
{{- with $part.tls.serverName }}
- name: WAYBILL_{{ $part.env }}__TLS__SERVER_NAME
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- if and $values.tls.admin.enabled (not $values.tls.enabled) }}
{{- fail "tls.admin.enabled: the certificate is that of `tls`: set tls.enabled, too" }}
{{- end }}
{{- if $values.tls.admin.enabled }}
- name: WAYBILL_ADMIN__TLS__CERT_FILE
  value: /etc/waybill/tls/tls.crt
- name: WAYBILL_ADMIN__TLS__KEY_FILE
  value: /etc/waybill/tls/tls.key
{{- if $values.tls.admin.requireClientCertificate }}
- name: WAYBILL_ADMIN__TLS__CLIENT_CA_FILE
  value: /etc/waybill/tls/{{ required "tls.admin.requireClientCertificate: name the authority's certificate in tls.caKey" $values.tls.caKey }}
{{- end }}
{{- end }}
{{- if $values.tls.enabled }}
- name: WAYBILL_TLS__CERT_FILE
  value: /etc/waybill/tls/tls.crt
- name: WAYBILL_TLS__KEY_FILE
  value: /etc/waybill/tls/tls.key
{{- if $values.tls.requireClientCertificate }}
- name: WAYBILL_TLS__CLIENT_CA_FILE
  value: /etc/waybill/tls/{{ required "tls.requireClientCertificate: name the authority's certificate in tls.caKey" $values.tls.caKey }}
{{- end }}
{{- end }}
{{- if eq $component "relay" }}
{{- if $values.embedding.enabled }}
- name: WAYBILL_ENDPOINTS__EMBEDDING
  value: {{ include "waybill.url" (list $root "embedding") }}
{{- else if not (dig "endpoints" "embedding" "" $values.config) }}
{{- fail "embedding.enabled is false: name the embedding service that the relay is to ask in config.endpoints.embedding" }}
{{- end }}
{{- if $values.tls.enabled }}
{{- with $values.tls.caKey }}
- name: WAYBILL_ENDPOINTS__TLS__CA_FILE
  value: /etc/waybill/tls/{{ . }}
{{- end }}
{{- if $values.tls.requireClientCertificate }}
- name: WAYBILL_ENDPOINTS__TLS__CERT_FILE
  value: /etc/waybill/tls/tls.crt
- name: WAYBILL_ENDPOINTS__TLS__KEY_FILE
  value: /etc/waybill/tls/tls.key
{{- end }}
{{- end }}
{{- end }}
{{- if eq $component "embedding" }}
{{- $model := $values.embedding.model }}
- name: WAYBILL_EMBEDDING__MODEL__KIND
  value: {{ $model.kind | quote }}
{{- if eq $model.kind "local" }}
- name: WAYBILL_EMBEDDING__MODEL__LOCAL__PATH
  value: {{ $model.local.path | quote }}
{{- else if eq $model.kind "openai" }}
- name: WAYBILL_EMBEDDING__MODEL__OPENAI__BASE_URL
  value: {{ $model.openai.baseUrl | quote }}
- name: WAYBILL_EMBEDDING__MODEL__OPENAI__MODEL
  value: {{ $model.openai.model | quote }}
{{- else if eq $model.kind "tei" }}
- name: WAYBILL_EMBEDDING__MODEL__TEI__BASE_URL
  value: {{ $model.tei.baseUrl | quote }}
{{- else }}
{{- fail "embedding.model.kind: say who embeds: `local` (a folder), `openai` (any server with /v1/embeddings) or `tei` (Text Embeddings Inference)" }}
{{- end }}
{{- end }}
{{- if eq $component "extraction" }}
- name: WAYBILL_EXTRACTION__PROVIDER
  value: {{ $values.extraction.provider | quote }}
{{- if eq $values.extraction.provider "openai" }}
- name: WAYBILL_EXTRACTION__OPENAI__BASE_URL
  value: {{ $values.extraction.openai.baseUrl | quote }}
- name: WAYBILL_EXTRACTION__OPENAI__MODEL
  value: {{ $values.extraction.openai.model | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What every pod says about where and as whom it runs: (root, component, its settings). */}}
{{- define "waybill.podBasics" -}}
{{- $root := index . 0 -}}
{{- $own := index . 2 -}}
serviceAccountName: {{ include "waybill.serviceAccountName" . }}
automountServiceAccountToken: false
# Variables for each Service of the namespace would look like settings.
enableServiceLinks: false
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml $own.podSecurityContext | nindent 2 }}
{{- range $key := list "nodeSelector" "affinity" "tolerations" "hostAliases" "dnsConfig" }}
{{- with index $own $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- range $key := list "priorityClassName" "runtimeClassName" "schedulerName" }}
{{- with index $own $key }}
{{ $key }}: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What every container of ours says: (root, component, its settings). */}}
{{- define "waybill.containerBasics" -}}
{{- $root := index . 0 -}}
{{- $own := index . 2 -}}
image: {{ include "waybill.image" $root | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
securityContext:
  {{- toYaml $own.containerSecurityContext | nindent 2 }}
resources:
  {{- toYaml $own.resources | nindent 2 }}
{{- with $own.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
