{{/* What every name begins with. */}}
{{- define "lakehouse.name" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels that select pods.  Takes {root, component}. */}}
{{- define "lakehouse.selector" -}}
app.kubernetes.io/name: lakehouse
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of every object.  Takes {root, component}. */}}
{{- define "lakehouse.labels" -}}
{{ include "lakehouse.selector" . }}
app.kubernetes.io/part-of: lakehouse
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* An image's reference.  Takes {registry, image, tag}. */}}
{{- define "lakehouse.image" -}}
{{- $path := .image.repository -}}
{{- with .registry }}{{ $path = printf "%s/%s" (trimSuffix "/" .) $path }}{{ end -}}
{{- $reference := printf "%s:%s" $path (default .tag .image.tag) -}}
{{- with .image.digest }}{{ $reference = printf "%s@%s" $reference . }}{{ end -}}
{{- $reference -}}
{{- end -}}

{{- define "lakehouse.image.dataplane" -}}
{{- include "lakehouse.image" (dict "registry" .Values.images.registry "image" .Values.images.dataplane "tag" .Chart.AppVersion) -}}
{{- end -}}

{{- define "lakehouse.image.operator" -}}
{{- include "lakehouse.image" (dict "registry" .Values.images.registry "image" .Values.images.operator "tag" .Chart.AppVersion) -}}
{{- end -}}

{{- define "lakehouse.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The ServiceAccount of a component.  Takes {root, component}. */}}
{{- define "lakehouse.serviceAccount" -}}
{{- if .root.Values.serviceAccount.create -}}
{{ include "lakehouse.name" .root }}-{{ .component }}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{/* Pod Security restricted, for pods and for containers. */}}
{{- define "lakehouse.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "lakehouse.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* Where pods go.  Takes a component's values. */}}
{{- define "lakehouse.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* ---------------------------------------------------------------------------------------------- storage */}}

{{- define "lakehouse.s3.endpoint" -}}
{{- if .Values.minio.enabled -}}
http://{{ include "lakehouse.name" . }}-minio.{{ .Release.Namespace }}.svc:9000
{{- else -}}
{{ .Values.storage.s3.endpoint }}
{{- end -}}
{{- end -}}

{{- define "lakehouse.s3.prefix" -}}
{{- default .Release.Namespace (trimAll "/" .Values.storage.s3.prefix) -}}
{{- end -}}

{{- define "lakehouse.credentials" -}}
{{- if .Values.minio.enabled -}}
{{ include "lakehouse.name" . }}-minio
{{- else -}}
{{ .Values.storage.credentialsSecretRef.name }}
{{- end -}}
{{- end -}}

{{/* The ConfigMap with the certificates of the store's endpoint; nothing where it has none of its own. */}}
{{- define "lakehouse.ca" -}}
{{- if and .Values.storage.s3.caBundle (not .Values.minio.enabled) -}}
{{ include "lakehouse.name" . }}-ca
{{- end -}}
{{- end -}}

{{/* Pods start anew when the certificates change. */}}
{{- define "lakehouse.ca.annotation" -}}
{{- if include "lakehouse.ca" . -}}
lakehouse.agentview.dev/ca: {{ .Values.storage.s3.caBundle | sha256sum | trunc 16 | quote }}
{{- end -}}
{{- end -}}

{{/* ------------------------------------------------------------------------------------------------- keys */}}

{{- define "lakehouse.keys.secret" -}}
{{- default (printf "%s-keys" (include "lakehouse.name" .)) .Values.keys.existingSecret -}}
{{- end -}}

{{/* The chart's own keys, made once per rendering and kept from what the cluster has: {admin, write, read}. */}}
{{- define "lakehouse.keys.make" -}}
{{- if not (hasKey .Values "_keys") -}}
{{- $there := dig "data" dict (default dict (lookup "v1" "Secret" .Release.Namespace (include "lakehouse.keys.secret" .))) -}}
{{- $keys := dict -}}
{{- range $right := list "admin" "read" "write" -}}
{{- $_ := set $keys $right (hasKey $there $right | ternary (get $there $right | b64dec) (randAlphaNum 43)) -}}
{{- end -}}
{{- $_ := set .Values "_keys" $keys -}}
{{- end -}}
{{- end -}}

{{/* keys.json: names, rights and hashes. */}}
{{- define "lakehouse.keys.json" -}}
{{- include "lakehouse.keys.make" . -}}
{{- $list := list -}}
{{- range $right, $key := .Values._keys -}}
{{- $list = append $list (dict "name" $right "right" $right "sha256" (sha256sum $key)) -}}
{{- end -}}
{{- concat $list .Values.keys.extra | toJson -}}
{{- end -}}

{{/* Pods start anew when the keys change. */}}
{{- define "lakehouse.keys.annotation" -}}
{{- if and .Values.keys.required (not .Values.keys.existingSecret) -}}
lakehouse.agentview.dev/keys: {{ include "lakehouse.keys.json" . | sha256sum | trunc 16 | quote }}
{{- end -}}
{{- end -}}

{{/* ------------------------------------------------------------------------------------- data-plane pods */}}

{{/* Settings that every data-plane pod has. */}}
{{- define "lakehouse.env.common" -}}
- {name: LAKEHOUSE_HOST, value: "0.0.0.0"}
- {name: LAKEHOUSE_PORT, value: "3110"}
- {name: LAKEHOUSE_DRAIN_S, value: "8"}
{{- if .Values.keys.required }}
- name: LAKEHOUSE_KEYS
  valueFrom: {secretKeyRef: {name: {{ include "lakehouse.keys.secret" . }}, key: keys.json}}
{{- else }}
- {name: LAKEHOUSE_INSECURE, value: "true"}
{{- end }}
- name: LAKEHOUSE_PEER_KEY
  valueFrom: {secretKeyRef: {name: lakehouse-peer-key, key: peer-key}}
{{- end -}}

{{/* Settings of pods that reach the bucket. */}}
{{- define "lakehouse.env.store" -}}
- {name: LAKEHOUSE_DATA, value: {{ printf "s3://%s/%s" .Values.storage.s3.bucket (include "lakehouse.s3.prefix" .) | quote }}}
{{- with include "lakehouse.s3.endpoint" . }}
- {name: LAKEHOUSE_S3_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- with .Values.storage.s3.region }}
- {name: LAKEHOUSE_S3_REGION, value: {{ . | quote }}}
{{- end }}
{{- if include "lakehouse.ca" . }}
- {name: AWS_CA_BUNDLE, value: /etc/lakehouse/ca/ca.crt}
{{- end }}
{{- end -}}

{{/* A container's variables: ours, without those that the user gives too, then theirs.  Takes {ours, theirs}. */}}
{{- define "lakehouse.env" -}}
{{- $given := list -}}
{{- range .theirs }}{{ $given = append $given .name }}{{ end -}}
{{- $all := list -}}
{{- range fromYamlArray .ours -}}
{{- if not (has .name $given) }}{{ $all = append $all . }}{{ end -}}
{{- end -}}
{{- concat $all .theirs | toYaml -}}
{{- end -}}

{{/* A Deployment of data-plane pods.  Takes {root, component, values, env, credentials, token}. */}}
{{- define "lakehouse.deployment" -}}
{{- $name := printf "%s-%s" (include "lakehouse.name" .root) .component -}}
{{- $ca := eq .component "gateway" | ternary "" (include "lakehouse.ca" .root) -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "lakehouse.labels" . | nindent 4 }}
spec:
  replicas: {{ .values.replicas }}
  revisionHistoryLimit: 3
  strategy:
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
  selector:
    matchLabels: {{- include "lakehouse.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "lakehouse.labels" . | nindent 8 }}
        {{- with .values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        kubectl.kubernetes.io/default-container: lakehouse
        {{- with include "lakehouse.keys.annotation" .root }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- if $ca }}
        {{- include "lakehouse.ca.annotation" .root | nindent 8 }}
        {{- end }}
        {{- with .values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "lakehouse.serviceAccount" . }}
      automountServiceAccountToken: {{ .token }}
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds }}
      {{- include "lakehouse.podSecurity" . | nindent 6 }}
      {{- include "lakehouse.pullSecrets" .root | nindent 6 }}
      {{- include "lakehouse.placement" .values | nindent 6 }}
      containers:
        - name: lakehouse
          image: {{ include "lakehouse.image.dataplane" .root | quote }}
          imagePullPolicy: {{ .root.Values.images.pullPolicy }}
          args: [serve]
          env:
            {{- $ours := printf "%s\n%s" (include "lakehouse.env.common" .root) .env }}
            {{- include "lakehouse.env" (dict "ours" $ours "theirs" .values.extraEnv) | nindent 12 }}
          {{- with .credentials }}
          envFrom:
            - secretRef: {name: {{ . }}}
          {{- end }}
          ports:
            - {name: http, containerPort: 3110}
          startupProbe:
            httpGet: {path: /livez, port: http}
            periodSeconds: 2
            failureThreshold: 60
          livenessProbe:
            httpGet: {path: /livez, port: http}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            httpGet: {path: /readyz, port: http}
            periodSeconds: 2
            timeoutSeconds: 5
          {{- include "lakehouse.containerSecurity" . | nindent 10 }}
          resources: {{- toYaml .values.resources | nindent 12 }}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            {{- if $ca }}
            - {name: certificates, mountPath: /etc/lakehouse/ca, readOnly: true}
            {{- end }}
      volumes:
        - name: tmp
          emptyDir: {sizeLimit: {{ dig "cache" "size" "5Gi" .values }}}
        {{- with $ca }}
        - name: certificates
          configMap: {name: {{ . }}}
        {{- end }}
{{- end -}}

{{/* A budget from two replicas up.  Takes {root, component, values}. */}}
{{- define "lakehouse.disruptions" -}}
{{- if and .values.podDisruptionBudget (gt (int .values.replicas) 1) }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "lakehouse.name" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "lakehouse.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "lakehouse.selector" . | nindent 6 }}
{{- end }}
{{- end -}}
