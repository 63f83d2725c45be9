{{- /* The reference of an image: a digest wins over a tag, and without both it is the version of the chart. */ -}}
{{- define "gpuhealth.image" -}}
{{- $top := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default $top.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- /* Resources of the agent: without privileges it needs the kernel log of a device plugin. */ -}}
{{- define "gpuhealth.agentResources" -}}
{{- $more := ternary (dict "limits" (dict "squat.ai/kmsg" "1")) (dict) .Values.unprivileged.enabled -}}
{{- toYaml (mergeOverwrite (deepCopy .Values.agent.resources) $more) }}
{{- end }}

{{- /* The key of the taint of new nodes, which is a setting of the agent. */ -}}
{{- define "gpuhealth.preflightTaint" -}}
{{ dig "preflight" "taint" "gpuhealth.io/preflight" .Values.settings }}
{{- end }}

{{- /* The annotation with the reason of an agent's cordon; empty without one. */ -}}
{{- define "gpuhealth.cordonReason" -}}
{{ dig "quarantine" "cordon_reason" "" .Values.settings }}
{{- end }}

{{- /* The types of the conditions that agents write, as a list of CEL. */ -}}
{{- define "gpuhealth.conditions" -}}
['GPUHealthy'{{ range .Values.settings.conditions }}, {{ .type | squote }}{{ end }}]
{{- end }}

{{- /* Not empty if the release has the admission policies: servers older than 1.30 do not know their kind. */ -}}
{{- define "gpuhealth.admissionPolicies" -}}
{{- if and .Values.admissionPolicies.enabled (semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version) -}}
true
{{- end -}}
{{- end }}

{{- /* Not empty if the release has the budget: Helm can create an object only once the server knows its kind. */ -}}
{{- define "gpuhealth.quarantineBudget" -}}
{{- if and .Values.quarantineBudget.enabled (.Capabilities.APIVersions.Has "gpuhealth.io/v1alpha1/QuarantineBudget") -}}
true
{{- end -}}
{{- end }}
