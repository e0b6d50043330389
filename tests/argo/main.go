// Command argo prints what a Kubeflow Pipelines server makes of a compiled package: the Argo Workflow, and for each
// container task the pod that it asks Kubernetes for.
//
// Nothing of that is worked out here. The server's own template package reads the package, checks the parameters and
// compiles the Workflow; the driver's own functions, with the arguments that the Workflow hands them, make the patch
// that carries resources, scheduling, secrets and volumes; the patch is merged as Argo merges it.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	_ "unsafe" // for go:linkname

	wfapi "github.com/argoproj/argo-workflows/v4/pkg/apis/workflow/v1alpha1"
	"github.com/kubeflow/pipelines/api/v2alpha1/go/pipelinespec"
	"github.com/kubeflow/pipelines/backend/src/apiserver/config/proxy"
	"github.com/kubeflow/pipelines/backend/src/apiserver/model"
	"github.com/kubeflow/pipelines/backend/src/apiserver/template"
	"github.com/kubeflow/pipelines/backend/src/common/util"
	"github.com/kubeflow/pipelines/backend/src/v2/driver"
	"github.com/kubeflow/pipelines/backend/src/v2/metadata"
	"github.com/kubeflow/pipelines/kubernetes_platform/go/kubernetesplatform"
	"google.golang.org/protobuf/types/known/structpb"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// The driver exports none of these, and its exported entry wants a metadata server and a Kubernetes API around them.
// They are linked, not copied: what runs is what a cluster runs, and another version with another signature is a new
// pin in go.mod.

//go:linkname initPodSpecPatch github.com/kubeflow/pipelines/backend/src/v2/driver.initPodSpecPatch
func initPodSpecPatch(
	container *pipelinespec.PipelineDeploymentConfig_PipelineContainerSpec, component *pipelinespec.ComponentSpec,
	executorInput *pipelinespec.ExecutorInput, executionID int64, pipelineName, runID, runName, logLevel, publishLogs,
	cacheDisabled string, taskConfig *driver.TaskConfig, serverTLS, metadataTLS bool, caCertPath, serverAddress,
	serverPort, metadataAddress, metadataPort string, pluginEnv any,
) (*corev1.PodSpec, error)

//go:linkname extendPodSpecPatch github.com/kubeflow/pipelines/backend/src/v2/driver.extendPodSpecPatch
func extendPodSpecPatch(
	ctx context.Context, pod *corev1.PodSpec, options driver.Options, dag *metadata.DAG, pipeline *metadata.Pipeline,
	client *metadata.Client, inputs map[string]*structpb.Value, taskConfig *driver.TaskConfig,
) error

//go:linkname resolveInputParameter github.com/kubeflow/pipelines/backend/src/v2/driver.resolveInputParameter
func resolveInputParameter(
	ctx context.Context, dag *metadata.DAG, pipeline *metadata.Pipeline, options driver.Options,
	client *metadata.Client, spec *pipelinespec.TaskInputsSpec_InputParameterSpec, inputs map[string]*structpb.Value,
) (*structpb.Value, error)

type task struct {
	Name      string                     `json:"name"`
	Path      []string                   `json:"path"` // the DAGs it lies in, from the root
	Component string                     `json:"component"`
	Condition string                     `json:"condition,omitempty"`
	Caching   bool                       `json:"caching"`
	Inputs    map[string]*structpb.Value `json:"inputs"`   // parameters whose values are known before the run
	Upstream  map[string]string          `json:"upstream"` // parameters that another task gives
	Template  wfapi.Template             `json:"template"` // as Argo runs it, arguments filled in
	Metadata  wfapi.Metadata             `json:"metadata"` // of the pod
	Patch     *corev1.PodSpec            `json:"patch"`    // the driver's
	Pod       *corev1.PodSpec            `json:"pod"`      // the template with the patch
}

type run struct {
	id        string
	workflow  *wfapi.Workflow
	templates map[string]wfapi.Template
	tasks     []task
}

func main() {
	id := flag.String("run", "00000000-0000-0000-0000-000000000000", "the id of the run")
	parameters := flag.String("parameters", "{}", "the run's parameters as JSON")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: argo [--run ID] [--parameters JSON] PACKAGE")
		os.Exit(2)
	}
	if err := show(flag.Arg(0), *id, *parameters); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func show(path, id, parameters string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	proxy.InitializeConfigWithEmptyForTests()
	spec, err := template.NewV2SpecTemplate(content, template.TemplateOptions{})
	if err != nil {
		return err
	}
	asked := &model.Run{DisplayName: "run", PipelineSpec: model.PipelineSpec{
		RuntimeConfig: model.RuntimeConfig{Parameters: model.LargeText(parameters)},
	}}
	execution, err := spec.RunWorkflow(asked, template.RunWorkflowOptions{RunID: id})
	if err != nil {
		return err
	}
	r := &run{id: id, workflow: execution.(*util.Workflow).Workflow, templates: map[string]wfapi.Template{}}
	for _, t := range r.workflow.Spec.Templates {
		r.templates[t.Name] = t
	}
	if err := r.visit(r.workflow.Spec.Entrypoint, nil, nil); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	return out.Encode(map[string]any{"workflow": r.workflow, "tasks": r.tasks})
}

// visit collects the container tasks of a DAG template and of those below it.
func (r *run) visit(name string, path []string, known map[string]*structpb.Value) error {
	dag := r.templates[name].DAG
	drivers := map[string]wfapi.DAGTask{}
	for _, t := range dag.Tasks {
		drivers[t.Name] = t
	}
	for _, t := range dag.Tasks {
		made, ok := drivers[t.Name+"-driver"]
		switch below := r.templates[t.Template]; {
		case below.DAG == nil: // a driver, or an importer
		case strings.HasSuffix(t.Template, "system-container-executor"):
			if err := r.container(t, made, path, known); err != nil {
				return fmt.Errorf("task %q: %w", t.Name, err)
			}
		default:
			inputs := known
			if ok {
				var err error
				if inputs, err = r.dagInputs(made, known); err != nil {
					return fmt.Errorf("task %q: %w", t.Name, err)
				}
			}
			if err := r.visit(t.Template, append(path[:len(path):len(path)], t.Name), inputs); err != nil {
				return err
			}
		}
	}
	return nil
}

// dagInputs gives what is known of a DAG's parameters before the run.
func (r *run) dagInputs(made wfapi.DAGTask, known map[string]*structpb.Value) (map[string]*structpb.Value, error) {
	if config := r.argument(made, "runtime-config"); config != "" { // the root
		runtime := &pipelinespec.PipelineJob_RuntimeConfig{}
		err := util.UnmarshalString(config, runtime)
		return runtime.GetParameterValues(), err
	}
	spec := &pipelinespec.PipelineTaskSpec{}
	if err := util.UnmarshalString(r.argument(made, "task"), spec); err != nil {
		return nil, err
	}
	inputs, _, err := r.inputs(made, spec, known)
	return inputs, err
}

func (r *run) container(t, made wfapi.DAGTask, path []string, known map[string]*structpb.Value) error {
	spec := &pipelinespec.PipelineTaskSpec{}
	component := &pipelinespec.ComponentSpec{}
	container := &pipelinespec.PipelineDeploymentConfig_PipelineContainerSpec{}
	if err := util.UnmarshalString(r.argument(made, "task"), spec); err != nil {
		return err
	}
	if err := util.UnmarshalString(r.argument(made, "component"), component); err != nil {
		return err
	}
	if err := util.UnmarshalString(r.argument(made, "container"), container); err != nil {
		return err
	}
	inputs, upstream, err := r.inputs(made, spec, known)
	if err != nil {
		return err
	}
	patch, err := initPodSpecPatch(container, component,
		&pipelinespec.ExecutorInput{Inputs: &pipelinespec.ExecutorInput_Inputs{ParameterValues: inputs}},
		1, r.workflow.GenerateName, r.id, "run", "1", "false", "false", &driver.TaskConfig{}, false, false, "",
		"ml-pipeline", "8887", "metadata-grpc-service", "8080", nil)
	if err != nil {
		return err
	}
	if text := r.argument(made, "kubernetes-config"); text != "" {
		config := &kubernetesplatform.KubernetesExecutorConfig{}
		if err := util.UnmarshalString(text, config); err != nil {
			return err
		}
		options := r.options(made, spec)
		options.Component, options.Container, options.KubernetesExecutorConfig = component, container, config
		if err := extendPodSpecPatch(context.Background(), patch, options, nil, nil, nil, known, &driver.TaskConfig{}); err != nil {
			return err
		}
	}
	filled, err := fill(r.templates[r.templates[t.Template].DAG.Tasks[0].Template], t.Arguments.Parameters)
	if err != nil {
		return err
	}
	pod, err := r.pod(filled, patch)
	if err != nil {
		return err
	}
	r.tasks = append(r.tasks, task{
		Name: t.Name, Path: path, Component: spec.GetComponentRef().GetName(),
		Condition: spec.GetTriggerPolicy().GetCondition(), Caching: spec.GetCachingOptions().GetEnableCache(),
		Inputs: inputs, Upstream: upstream,
		Template: filled, Metadata: r.metadata(filled), Patch: patch, Pod: pod,
	})
	return nil
}

func (r *run) options(made wfapi.DAGTask, spec *pipelinespec.PipelineTaskSpec) driver.Options {
	return driver.Options{
		RunID: r.id, RunName: "run", RunDisplayName: "run", Task: spec, TaskName: r.argument(made, "task-name"),
		IterationIndex: -1,
	}
}

// inputs gives the parameters of a task that are known before the run, and where the others come from.
func (r *run) inputs(
	made wfapi.DAGTask, spec *pipelinespec.PipelineTaskSpec, known map[string]*structpb.Value,
) (map[string]*structpb.Value, map[string]string, error) {
	values, upstream := map[string]*structpb.Value{}, map[string]string{}
	for name, input := range spec.GetInputs().GetParameters() {
		if output := input.GetTaskOutputParameter(); output != nil {
			upstream[name] = output.GetProducerTask() + "." + output.GetOutputParameterKey()
			continue
		}
		if parent := input.GetComponentInputParameter(); parent != "" && known[parent] == nil {
			upstream[name] = parent
			continue
		}
		value, err := resolveInputParameter(context.Background(), nil, nil, r.options(made, spec), nil, input, known)
		if err != nil {
			return nil, nil, err
		}
		values[name] = value
	}
	return values, upstream, nil
}

var workflowParameter = regexp.MustCompile(`^\{\{workflow\.parameters\.(.+)\}\}$`)

// argument gives what the Workflow hands a driver; large specs stand once, among the Workflow's own parameters.
func (r *run) argument(t wfapi.DAGTask, name string) string {
	given := t.Arguments.GetParameterByName(name)
	if given == nil || given.Value == nil {
		return ""
	}
	text := string(*given.Value)
	if match := workflowParameter.FindStringSubmatch(text); match != nil {
		return string(*r.workflow.Spec.Arguments.GetParameterByName(match[1]).Value)
	}
	return text
}

// fill puts arguments into a template, in its JSON as Argo does it.
func fill(t wfapi.Template, arguments []wfapi.Parameter) (wfapi.Template, error) {
	content, err := json.Marshal(t)
	if err != nil {
		return t, err
	}
	text := string(content)
	for _, a := range arguments {
		if a.Value == nil {
			continue
		}
		quoted, err := json.Marshal(string(*a.Value))
		if err != nil {
			return t, err
		}
		text = strings.ReplaceAll(text, "{{inputs.parameters."+a.Name+"}}", string(quoted[1:len(quoted)-1]))
	}
	filled := wfapi.Template{}
	err = json.Unmarshal([]byte(text), &filled)
	return filled, err
}

func (r *run) metadata(t wfapi.Template) wfapi.Metadata {
	merged := wfapi.Metadata{Labels: map[string]string{}, Annotations: map[string]string{}}
	for _, m := range []*wfapi.Metadata{r.workflow.Spec.PodMetadata, &t.Metadata} {
		for key, value := range m.Labels {
			merged.Labels[key] = value
		}
		for key, value := range m.Annotations {
			merged.Annotations[key] = value
		}
	}
	return merged
}

// pod gives the template's pod with the driver's patch merged in.
func (r *run) pod(t wfapi.Template, patch *corev1.PodSpec) (*corev1.PodSpec, error) {
	main := t.Container.DeepCopy()
	main.Name = "main"
	pod := &corev1.PodSpec{
		Containers: []corev1.Container{*main}, Volumes: t.Volumes, SecurityContext: t.SecurityContext,
		ServiceAccountName: r.workflow.Spec.ServiceAccountName, NodeSelector: t.NodeSelector, Tolerations: t.Tolerations,
	}
	for _, c := range t.InitContainers {
		pod.InitContainers = append(pod.InitContainers, c.Container)
	}
	before, err := json.Marshal(pod)
	if err != nil {
		return nil, err
	}
	change, err := json.Marshal(patch)
	if err != nil {
		return nil, err
	}
	after, err := strategicpatch.StrategicMergePatch(before, change, corev1.PodSpec{})
	if err != nil {
		return nil, err
	}
	patched := &corev1.PodSpec{}
	err = json.Unmarshal(after, patched)
	return patched, err
}
