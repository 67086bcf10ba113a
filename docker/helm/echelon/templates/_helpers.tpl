{{- /* The name that clients know the broker by. */ -}}
{{- define "echelon.host" -}}
{{- if .Values.broker.host }}{{ .Values.broker.host }}
{{- else if eq .Values.plane "exchange" }}exchange
{{- else }}boundary-{{ .Values.boundary }}{{ end }}
{{- end }}

{{- define "echelon.labels" -}}
app.kubernetes.io/name: echelon
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "echelon.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* As in compose.yaml: uid 1000, no capabilities, none to be gained. */ -}}
{{- define "echelon.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "echelon.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  privileged: false
  readOnlyRootFilesystem: {{ .readOnly }}
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "echelon.claim" -}}
- metadata: {name: {{ .name }}}
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .storage.class }}
    storageClassName: {{ . | quote }}
    {{- end }}
    resources: {requests: {storage: {{ .storage.size }}}}
{{- end }}

{{- /* One actor: a StatefulSet, and the Service that gives its pods names and monitors something to find. */ -}}
{{- define "echelon.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  labels: {{ include "echelon.labels" . | nindent 4 }}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {{ include "echelon.labels" . | nindent 4 }}
  ports: [{name: metrics, port: 9464, targetPort: metrics}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ .name }}
  labels: {{ include "echelon.labels" . | nindent 4 }}
spec:
  serviceName: {{ .name }}
  replicas: {{ .replicas }}
  podManagementPolicy: Parallel
  selector:
    matchLabels: {{ include "echelon.labels" . | nindent 6 }}
  template:
    metadata:
      labels: {{ include "echelon.labels" . | nindent 8 }}
    spec: {{ include "echelon.pod" .root | nindent 6 }}
      terminationGracePeriodSeconds: 30
      containers:
        - name: {{ .component }}
          image: {{ include "echelon.image" .root | quote }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          args: [{{ .component }}, --config, /etc/echelon/service.yaml]
          {{- include "echelon.container" (dict "readOnly" true) | nindent 10 }}
          env:
            - {name: ECHELON_STATE, value: /var/lib/echelon/state}
            - {name: ECHELON_HTTP__HOST, value: 0.0.0.0}
            {{- if .slots }}
            - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
            - {name: ECHELON_SLOTS, value: "null"}
            - {name: ECHELON_SLOT, value: /slot/$(POD_NAME)}
            {{- end }}
            {{- if .trains }}
            - {name: HF_HUB_OFFLINE, value: "1"}
            {{- end }}
          ports: [{name: metrics, containerPort: 9464}]
          startupProbe:
            httpGet: {path: /livez, port: metrics}
            periodSeconds: 5
            timeoutSeconds: 15
            failureThreshold: 60
          livenessProbe:
            httpGet: {path: /livez, port: metrics}
            periodSeconds: 30
            timeoutSeconds: 15
            failureThreshold: 3
          readinessProbe:
            httpGet: {path: /readyz, port: metrics}
            periodSeconds: 10
            timeoutSeconds: 15
          resources: {{ toYaml .resources | nindent 12 }}
          volumeMounts:
            - {name: configuration, mountPath: /etc/echelon, readOnly: true}
            - {name: state, mountPath: /var/lib/echelon}
            - {name: tmp, mountPath: /tmp}
            {{- if .slots }}
            - {name: slots, mountPath: /slot, subPathExpr: $(POD_NAME), readOnly: true}
            {{- end }}
            {{- with .volumeMounts }}{{ toYaml . | nindent 12 }}{{ end }}
      volumes:
        - name: configuration
          secret: {secretName: {{ .secret }}, defaultMode: 0440}
        - name: tmp
          emptyDir: {sizeLimit: 256Mi}
        {{- if .slots }}
        # A pod's container sees the folder of its own slot, and no other's key.
        - name: slots
          secret:
            secretName: slots
            defaultMode: 0440
            items:
              {{- range $number := until (int .slots) }}
              {{- $slot := printf "%s-%d" $.name $number }}
              - {key: {{ $slot }}.signing.pem, path: {{ $slot }}/{{ $slot }}/signing.pem}
              - {key: {{ $slot }}.tls.pem, path: {{ $slot }}/{{ $slot }}/tls.pem}
              {{- end }}
        {{- end }}
        {{- with .volumes }}{{ toYaml . | nindent 8 }}{{ end }}
  volumeClaimTemplates: {{ include "echelon.claim" (dict "name" "state" "storage" .root.Values.services.state) | nindent 4 }}
{{- end }}
