package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// abortPolling is the time between two looks at a build that is to end.
const abortPolling = time.Second

// abortOptions are the flags of `zuulbuild abort`.
type abortOptions struct {
	kubeconfig string
	context    string
	namespace  string
	jobs       []string
	wait       bool
}

// newAbortCommand stops builds as somebody who works with the cluster rather than with Zuul.
func newAbortCommand() *cobra.Command {
	o := &abortOptions{}
	command := &cobra.Command{
		Use:   "abort BUILD...",
		Short: "Stop builds",
		Long: `Stop builds, each named by its ZuulBuild: spec.abort becomes true, the Pod is deleted, and Zuul is told ABORTED. A build that
has ended stays as it is. Names may be as kubectl prints them (zuulbuild.zuulbuild.dev/NAME).

It needs the rights to get, list and patch ZuulBuilds in the namespace. Where this program is on the PATH under the name
kubectl-zuulbuild, the command is "kubectl zuulbuild abort", too.

Exit codes: 0 all builds are stopping or have ended; 1 some could not be stopped; 2 wrong usage.`,
		Example: `  zuulbuild abort 5f3c1b0e7d9a4a6f8c2e1d0b9a8f7e6d
  zuulbuild abort --namespace builds --all-of-job unit-tests --wait
  kubectl get zuulbuilds --field-selector spec.node=large -o name | xargs zuulbuild abort`,
		RunE: func(command *cobra.Command, args []string) error { return o.run(command, args) },
	}
	command.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return usageError("%w; see zuulbuild abort --help", err)
	})
	flags := command.Flags()
	flags.SortFlags = false
	flags.StringVarP(&o.namespace, "namespace", "n", "", "namespace of the builds; default: that of the context")
	flags.StringArrayVar(&o.jobs, "all-of-job", nil, "stop every unfinished build of the job that Zuul calls so; may be given more than once")
	flags.BoolVar(&o.wait, "wait", false, "wait until the builds have ended, and show their results")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "cluster to work on; default: $KUBECONFIG, the cluster this runs in, or ~/.kube/config")
	flags.StringVar(&o.context, "context", "", "context of the kubeconfig; default: its current one")
	return command
}

// run stops the builds one by one and says of each what happened: on standard output, or, where something is wrong, on standard error.
func (o *abortOptions) run(command *cobra.Command, args []string) error {
	names, err := buildNames(args)
	if err != nil {
		return err
	}
	if len(names)+len(o.jobs) == 0 {
		return usageError("abort needs the name of a BUILD, or --all-of-job; see zuulbuild abort --help")
	}
	a, err := o.connect()
	if err != nil {
		return err
	}
	a.out, a.errors = command.OutOrStdout(), command.ErrOrStderr()
	ctx := command.Context()
	for _, job := range o.jobs {
		more, err := a.unfinished(ctx, job)
		if err != nil {
			return err
		}
		if len(more) == 0 {
			a.say("job %s has no unfinished build in namespace %s", job, a.namespace)
		}
		names = append(names, more...)
	}
	names = unique(names)
	var stopping []string
	failed := 0
	for _, name := range names {
		outcome, ended, err := a.stop(ctx, name)
		switch {
		case err != nil:
			a.complain(name, err)
			failed++
			continue
		case !ended:
			stopping = append(stopping, name)
		}
		a.tell(name, outcome)
	}
	if o.wait {
		for _, name := range stopping {
			if err := a.awaitEnd(ctx, name); err != nil {
				a.complain(name, err)
				failed++
			}
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d builds could not be stopped", failed, len(names))
	}
	return nil
}

// buildNames takes names as people type and kubectl prints them. Errors are of usage.
func buildNames(args []string) ([]string, error) {
	var names []string
	for _, arg := range args {
		kind, name, typed := strings.Cut(arg, "/")
		if !typed {
			kind, name = "", arg
		}
		kind = strings.TrimSuffix(kind, "."+v1alpha1.GroupVersion.Group)
		if name == "" || typed && !slices.Contains([]string{"zuulbuild", "zuulbuilds", "zb"}, kind) {
			return nil, usageError("%q is no ZuulBuild: NAME or zuulbuild/NAME was expected", arg)
		}
		names = append(names, name)
	}
	return names, nil
}

// unique leaves out what was there before.
func unique(names []string) []string {
	var kept []string
	for _, name := range names {
		if !slices.Contains(kept, name) {
			kept = append(kept, name)
		}
	}
	return kept
}

// aborter stops the builds of a namespace.
type aborter struct {
	api         client.Client
	namespace   string
	out, errors io.Writer
}

func (o *abortOptions) connect() (*aborter, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.kubeconfig
	overrides := &clientcmd.ConfigOverrides{CurrentContext: o.context}
	overrides.Context.Namespace = o.namespace
	access := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
	config, err := access.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("no cluster to work on: %w; give --kubeconfig", err)
	}
	config.WarningHandlerWithContext = rest.NoWarnings{}
	namespace, _, err := access.Namespace()
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	api, err := client.New(config, client.Options{Scheme: scheme})
	return &aborter{api: api, namespace: namespace}, err
}

// unfinished are the names of the builds of a job that are not complete, the oldest first.
func (a *aborter) unfinished(ctx context.Context, job string) ([]string, error) {
	builds := v1alpha1.ZuulBuildList{}
	if err := a.api.List(ctx, &builds, client.InNamespace(a.namespace), client.MatchingFields{"spec.job": job}); err != nil {
		return nil, fmt.Errorf("cannot list the builds of job %s in namespace %s: %w", job, a.namespace, a.explain(err))
	}
	slices.SortStableFunc(builds.Items, func(x, y v1alpha1.ZuulBuild) int { return x.CreationTimestamp.Compare(y.CreationTimestamp.Time) })
	var names []string
	for i := range builds.Items {
		if !builds.Items[i].Complete() {
			names = append(names, builds.Items[i].Name)
		}
	}
	return names, nil
}

// stop has a build stop, and tells what that came to, and whether it has ended.
func (a *aborter) stop(ctx context.Context, name string) (outcome string, ended bool, err error) {
	build := &v1alpha1.ZuulBuild{}
	if err := a.api.Get(ctx, types.NamespacedName{Namespace: a.namespace, Name: name}, build); err != nil {
		return "", false, a.explain(err)
	}
	switch {
	case build.Complete():
		return "already ended " + resultOf(build), true, nil
	case build.Spec.Abort:
		return "already stopping", false, nil
	}
	// The UID leaves a build alone that has taken the name meanwhile.
	patch := fmt.Appendf(nil, `{"metadata":{"uid":%q},"spec":{"abort":true}}`, build.UID)
	if err := a.api.Patch(ctx, build, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return "", false, a.explain(err)
	}
	if build.Complete() { // meanwhile
		return "already ended " + resultOf(build), true, nil
	}
	return "stopping", false, nil
}

// explain tells a person what to do about an error of the API server's.
func (a *aborter) explain(err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("there is no such ZuulBuild in namespace %s; --namespace chooses another, and `kubectl get zuulbuilds --all-namespaces` shows all",
			a.namespace)
	case meta.IsNoMatchError(err):
		return fmt.Errorf("this cluster knows no ZuulBuilds; --kubeconfig and --context choose another: %w", err)
	default:
		return err
	}
}

// awaitEnd waits until a build is complete, and tells its result.
func (a *aborter) awaitEnd(ctx context.Context, name string) error {
	build := &v1alpha1.ZuulBuild{}
	err := wait.PollUntilContextCancel(ctx, abortPolling, true, func(ctx context.Context) (bool, error) {
		err := a.api.Get(ctx, types.NamespacedName{Namespace: a.namespace, Name: name}, build)
		return build.Complete(), err
	})
	switch {
	case apierrors.IsNotFound(err):
		a.tell(name, "deleted meanwhile")
		return nil
	case err != nil:
		return fmt.Errorf("stopping, but its end was not seen: %w", err)
	}
	a.tell(name, "ended "+resultOf(build))
	return nil
}

// resultOf a complete build, for people.
func resultOf(build *v1alpha1.ZuulBuild) string {
	if build.Status.Result == "" {
		return fmt.Sprintf("without a result (%s), so that Zuul runs it again", build.Status.Reason)
	}
	return build.Status.Result
}

func (a *aborter) tell(name, outcome string) { a.say("zuulbuild/%s: %s", name, outcome) }

func (a *aborter) say(format string, args ...any) { _, _ = fmt.Fprintf(a.out, format+"\n", args...) }

func (a *aborter) complain(name string, err error) {
	_, _ = fmt.Fprintf(a.errors, "zuulbuild/%s: %v\n", name, err)
}
