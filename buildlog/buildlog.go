// Package buildlog says what each line of the log about a build has, whoever writes it, so that the log of one can be found by its uuid. docs/logs.md
// tells of the keys.
package buildlog

import (
	"context"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// Keys of what Values returns.
const (
	KeyUUID  = "uuid"
	KeyJob   = "job"
	KeyBuild = "build"
)

// Values are keys and values for a line about a build, for loggers of log/slog and logr alike. All keys are always there; what is not known, or is not,
// like the uuid of a build made by hand, is empty.
func Values(uuid, job string, build types.NamespacedName) []any {
	name := ""
	if build.Name != "" {
		name = build.String()
	}
	return []any{KeyUUID, uuid, KeyJob, job, KeyBuild, name}
}

// Of a build.
func Of(build *v1alpha1.ZuulBuild) []any {
	return Values(build.Spec.UUID, build.Spec.Job, client.ObjectKeyFromObject(build))
}

// Constructor makes the loggers of a controller whose requests name builds: controller-runtime's own lines, such as "Reconciler error", are written with
// them too. otherwise gives the values of a build that the cache does not show.
//
//nolint:contextcheck,nolintlint // a logger is made before there is a context of the round, and the cache answers at once
func Constructor(mgr manager.Manager, controller string, otherwise func(types.NamespacedName) []any) func(*reconcile.Request) logr.Logger {
	logger, builds := mgr.GetLogger().WithValues("controller", controller), mgr.GetClient()
	return func(request *reconcile.Request) logr.Logger {
		if request == nil { // a line about the controller itself
			return logger
		}
		build := &v1alpha1.ZuulBuild{}
		// It is made for each request, whether or not there is anything to log: a build is not copied for that.
		if err := builds.Get(context.Background(), request.NamespacedName, build, client.UnsafeDisableDeepCopy); err != nil {
			return logger.WithValues(otherwise(request.NamespacedName)...)
		}
		return logger.WithValues(Of(build)...)
	}
}
