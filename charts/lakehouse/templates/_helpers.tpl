{{/* What every name begins with.  Helm takes names that no Service may have. */}}
{{- define "lakehouse.name" -}}
{{- $name := default .Release.Name .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "no Service can be called after the release `%s`: its name must begin with a letter and hold letters, digits and hyphens alone. Set fullnameOverride, or give the release another name" .Release.Name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* A map of ours, then what users add to it; a name of ours stays ours.  Takes {ours, theirs}. */}}
{{- define "lakehouse.and" -}}
{{- .ours -}}
{{- $ours := fromYaml .ours -}}
{{- range $name, $value := .theirs }}
{{- if not (hasKey $ours $name) }}
{{ dict $name $value | toYaml }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The namespace to declare things in, for the test and the notes: the release's own where it is watched. */}}
{{- define "lakehouse.home" -}}
{{- $watched := .Values.watchNamespaces -}}
{{- if or (not $watched) (has "*" $watched) (has .Release.Namespace $watched) -}}
{{ .Release.Namespace }}
{{- else -}}
{{ first $watched }}
{{- end -}}
{{- end -}}

{{/* Labels that select pods.  Takes {root, component}. */}}
{{- define "lakehouse.selector" -}}
app.kubernetes.io/name: lakehouse
app.kubernetes.io/instance: {{ .root.Release.Name | toYaml }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of every object.  Takes {root, component}. */}}
{{- define "lakehouse.labels" -}}
{{- include "lakehouse.and" (dict "ours" (include "lakehouse.labels.own" .) "theirs" .root.Values.commonLabels) -}}
{{- end -}}

{{- define "lakehouse.labels.own" -}}
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

{{- define "lakehouse.image.registry" -}}
{{- default (dig "imageRegistry" "" (default dict .Values.global)) .Values.images.registry -}}
{{- end -}}

{{- define "lakehouse.image.dataplane" -}}
{{- include "lakehouse.image" (dict "registry" (include "lakehouse.image.registry" .) "image" .Values.images.dataplane "tag" .Chart.AppVersion) -}}
{{- end -}}

{{- define "lakehouse.image.operator" -}}
{{- include "lakehouse.image" (dict "registry" (include "lakehouse.image.registry" .) "image" .Values.images.operator "tag" .Chart.AppVersion) -}}
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
{{- $own := dig "serviceAccount" "name" "" (get .root.Values .component | default dict) -}}
{{- if $own -}}
{{ $own }}
{{- else if .root.Values.serviceAccount.create -}}
{{ include "lakehouse.name" .root }}-{{ .component }}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{/* Pod Security restricted, for pods and for containers. */}}
{{- define "lakehouse.podSecurity" -}}
{{- $ours := dict "runAsNonRoot" true "seccompProfile" (dict "type" "RuntimeDefault") -}}
securityContext: {{- merge (deepCopy .Values.podSecurityContext) $ours | toYaml | nindent 2 }}
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

{{/* A quantity in bytes. */}}
{{- define "lakehouse.bytes" -}}
{{- $units := dict "" 1.0 "m" 1e-3 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 -}}
{{- $units = merge $units (dict "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0) -}}
{{- $units = merge $units (dict "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0) -}}
{{- $number := regexFind "^[0-9.]+" . -}}
{{- mulf (float64 $number) (get $units (trimPrefix $number .)) | printf "%.0f" -}}
{{- end -}}

{{/* ---------------------------------------------------------------------------------------------- storage */}}

{{- define "lakehouse.s3.endpoint" -}}
{{- if .Values.minio.enabled -}}
http://{{ include "lakehouse.name" . }}-minio.{{ .Release.Namespace }}.svc:9000
{{- else -}}
{{ .Values.storage.s3.endpoint }}
{{- end -}}
{{- end -}}

{{/* As the operator takes it. */}}
{{- define "lakehouse.s3.prefix" -}}
{{- $prefix := default "{namespace}" .Values.storage.s3.prefix -}}
{{- $watched := .Values.watchNamespaces -}}
{{- if and (or (has "*" $watched) (gt (len $watched) 1)) (not (contains "{namespace}" $prefix)) -}}
{{- fail (printf "storage.s3.prefix is `%s`, and several namespaces are watched: the same name in two of them would be one thing in the bucket. Put {namespace} into the prefix" $prefix) -}}
{{- end -}}
{{- $prefix -}}
{{- end -}}

{{/* Where what is made over HTTP lies, and what is declared in the release's namespace. */}}
{{- define "lakehouse.s3.url" -}}
{{- $prefix := include "lakehouse.s3.prefix" . | replace "{namespace}" .Release.Namespace | trimAll "/" -}}
{{- printf "s3://%s/%s" .Values.storage.s3.bucket $prefix | trimSuffix "/" -}}
{{- end -}}

{{- define "lakehouse.credentials" -}}
{{- if .Values.minio.enabled -}}
{{ default (printf "%s-minio" (include "lakehouse.name" .)) .Values.minio.existingSecret }}
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
{{- end -}}

{{/* Where a pod that asks its like has the key as a file, which follows its Secret when that changes. */}}
{{- define "lakehouse.peers.dir" -}}
/etc/lakehouse/peers
{{- end -}}

{{/* Settings of pods that reach the bucket. */}}
{{- define "lakehouse.env.store" -}}
- {name: LAKEHOUSE_DATA, value: {{ include "lakehouse.s3.url" . | quote }}}
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

{{/* Where a pod has the store's Secret as files, which follow it when it changes. */}}
{{- define "lakehouse.credentials.dir" -}}
/etc/lakehouse/s3
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

{{/* A Deployment of data-plane pods.  Takes {root, component, values, env, credentials, token, peers}. */}}
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
      labels: {{- include "lakehouse.and" (dict "ours" (include "lakehouse.labels" .) "theirs" .values.podLabels) | nindent 8 }}
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
      {{- include "lakehouse.podSecurity" .root | nindent 6 }}
      {{- include "lakehouse.pullSecrets" .root | nindent 6 }}
      {{- include "lakehouse.placement" .values | nindent 6 }}
      containers:
        - name: lakehouse
          image: {{ include "lakehouse.image.dataplane" .root | quote }}
          imagePullPolicy: {{ .root.Values.images.pullPolicy }}
          args: [serve]
          env:
            {{- $ours := printf "%s\n%s" (include "lakehouse.env.common" .root) .env }}
            {{- $ours = printf "%s\n- {name: LAKEHOUSE_LOG_LEVEL, value: %s}" $ours .values.logLevel }}
            {{- if .credentials }}
            {{- $ours = printf "%s\n- {name: LAKEHOUSE_S3_CREDENTIALS_DIR, value: %s}" $ours (include "lakehouse.credentials.dir" .root) }}
            {{- end }}
            {{- if .peers }}
            {{- $ours = printf "%s\n- {name: LAKEHOUSE_PEER_KEY_FILE, value: %s/peer-key}" $ours (include "lakehouse.peers.dir" .root) }}
            {{- end }}
            {{- include "lakehouse.env" (dict "ours" $ours "theirs" .values.extraEnv) | nindent 12 }}
          {{- if or .credentials .values.extraEnvFrom }}
          envFrom:
            {{- with .values.extraEnvFrom }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
            {{- with .credentials }}
            # For what else it says, such as AWS_REGION; its keys are taken from the files.
            - secretRef: {name: {{ . }}}
            {{- end }}
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
            {{- if .credentials }}
            - {name: credentials, mountPath: {{ include "lakehouse.credentials.dir" .root }}, readOnly: true}
            {{- end }}
            {{- if .peers }}
            - {name: peer-key, mountPath: {{ include "lakehouse.peers.dir" .root }}, readOnly: true}
            {{- end }}
            {{- with .values.extraVolumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        - name: tmp
          emptyDir: {sizeLimit: {{ dig "cache" "size" "5Gi" .values }}}
        {{- with $ca }}
        - name: certificates
          configMap: {name: {{ . }}}
        {{- end }}
        {{- with .credentials }}
        - name: credentials
          secret: {secretName: {{ . }}, defaultMode: 292}  # 0444: nobody in the pod is root
        {{- end }}
        {{- if .peers }}
        - name: peer-key
          secret: {secretName: lakehouse-peer-key, defaultMode: 292}
        {{- end }}
        {{- with .values.extraVolumes }}
        {{- toYaml . | nindent 8 }}
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
