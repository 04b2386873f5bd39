package gearmanbridge

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/buildlog"
	"zuulbuild.dev/zuulbuild/description"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// maxDescriptionArgument bounds what is read of a set_description:, in bytes. Zuul's descriptions have a few thousand.
const maxDescriptionArgument = 8 << 20

// describeRequest is the argument of set_description:.
type describeRequest struct {
	build buildReference
	html  string // untrusted, of any size up to maxDescriptionArgument
}

// readDescription reads the argument of set_description:, in either dialect: {"name", "number", "html_description"}, or
// {"unique_id", "html_description"}.
func readDescription(argument []byte) (describeRequest, error) {
	if len(argument) > maxDescriptionArgument {
		return describeRequest{}, fmt.Errorf("the argument has %d bytes; %d are read", len(argument), maxDescriptionArgument)
	}
	fields := struct {
		Name     *string         `json:"name"`
		Number   json.RawMessage `json:"number"`
		UniqueID string          `json:"unique_id"`
		HTML     *string         `json:"html_description"`
	}{}
	if err := json.Unmarshal(argument, &fields); err != nil {
		return describeRequest{}, fmt.Errorf("the argument is not a JSON object with name, number and html_description: %w", err)
	}
	if fields.HTML == nil {
		return describeRequest{}, errors.New("the argument has no html_description")
	}
	build := buildReference{uuid: fields.UniqueID}
	if fields.Name != nil || build.uuid == "" {
		var err error
		if build, err = numberedBuild(fields.Name, fields.Number); err != nil {
			return describeRequest{}, err
		}
	}
	return describeRequest{build, *fields.HTML}, nil
}

// commandDescribe answers set_description:, notes what is to be written, and tells on which build. The answer does not wait for the API server: it
// only says that the build is known, and Zuul does not look at it.
func (b *Bridge) commandDescribe(ctx context.Context, s *session, job *gearman.Job) (key types.NamespacedName, known bool) {
	request, err := readDescription(job.Payload)
	if err != nil {
		b.refuseCommand(ctx, job, err)
		return key, false
	}
	request.build.server = s.server.Name
	key, known, err = b.findKey(ctx, request.build)
	if err != nil {
		b.commandLogger(ctx, job, request.build).Error("The builds cannot be read; a description is lost", "error", err)
	}
	if !known {
		b.metrics.command(job, commandUnknown, err)
		b.unknownBuild(ctx, job, request.build)
		return key, false
	}
	b.metrics.command(job, commandAccepted, nil)
	b.answer(ctx, job, request.build, true)
	b.describer.want(key, description.Sanitize(request.html))
	return key, true
}

// findKey finds the build also while it is on its way through intake.
func (b *Bridge) findKey(ctx context.Context, reference buildReference) (key types.NamespacedName, known bool, err error) {
	build, err := b.find(ctx, reference)
	if err != nil {
		return key, false, err
	}
	if build != nil {
		return client.ObjectKeyFromObject(build), true, nil
	}
	if a := b.onItsWay(reference); a != nil {
		return a.key, true, nil
	}
	return key, false, nil
}

// describer writes the descriptions: the newest of each build, in the end, and none that is there already. Zuul up to 2.1.0 sends one for every build
// of a change each time that something happens to one of them.
type describer struct {
	bridge *Bridge
	// changed wakes it for a build.
	changed chan event.GenericEvent

	mu  sync.Mutex
	due map[types.NamespacedName]dueDescription
}

// dueDescription is a description that the cache does not show yet.
type dueDescription struct {
	text string
	// forbidden is since when the API server has forbidden to write it, zero if it did not.
	forbidden time.Time
	// stored is what our own last write stored, and version what that made of the build; both are empty before it.
	stored, version string
}

// retryUnborn is how often it is looked whether a described build has come into being, if nothing is heard of it.
const retryUnborn = 5 * time.Second

func (d *describer) setup(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("describe").
		For(&v1alpha1.ZuulBuild{}).
		WatchesRawSource(source.Channel(d.changed, &handler.EnqueueRequestForObject{})).
		WithOptions(controller.Options{MaxConcurrentReconciles: 4}).
		WithLogConstructor(buildlog.Constructor(mgr, "describe", d.bridge.logValuesOf)).
		Complete(d)
}

// want notes what the description of a build shall be.
func (d *describer) want(key types.NamespacedName, text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.due == nil {
		d.due = map[types.NamespacedName]dueDescription{}
	}
	due := d.due[key]
	due.text = text
	d.due[key] = due
}

// wrote notes what was stored. Something newer may be wanted meanwhile.
func (d *describer) wrote(key types.NamespacedName, stored, version string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	due := d.due[key]
	due.stored, due.version = stored, version
	d.due[key] = due
}

// answered notes what the API server made of a write, and tells for how long it has forbidden it.
func (d *describer) answered(key types.NamespacedName, err error) (forbidden time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	due, now := d.due[key], time.Now()
	due.forbidden = forbiddenSince(due.forbidden, err, now)
	d.due[key] = due
	return now.Sub(due.forbidden)
}

// settled forgets a description, unless something newer is wanted meanwhile.
func (d *describer) settled(key types.NamespacedName, text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.due[key].text == text {
		delete(d.due, key)
	}
}

func (d *describer) dueFor(key types.NamespacedName) (dueDescription, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	due, ok := d.due[key]
	return due, ok
}

func (d *describer) notify(ctx context.Context, key types.NamespacedName) {
	build := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
	select {
	case d.changed <- event.GenericEvent{Object: build}:
	case <-ctx.Done():
	}
}

// Reconcile writes the description of one build if it is not what it shall be: a merge patch without a resource version, of this field alone, so that
// it is in nobody's way, before the verdict and after it.
func (d *describer) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	key := request.NamespacedName
	due, ok := d.dueFor(key)
	if !ok {
		return ctrl.Result{}, nil
	}
	build := &v1alpha1.ZuulBuild{}
	err := d.bridge.Client.Get(ctx, key, build)
	if apierrors.IsNotFound(err) && len(d.bridge.assignments.of(key)) > 0 {
		return ctrl.Result{RequeueAfter: retryUnborn}, nil
	}
	if apierrors.IsNotFound(err) {
		d.settled(key, due.text)
		return ctrl.Result{}, nil
	} else if err != nil {
		return ctrl.Result{}, err
	}
	if behind(build, due.version) {
		if due.stored == due.text {
			return ctrl.Result{}, nil // until the cache shows it
		}
	} else if build.Status.Description == due.text {
		d.settled(key, due.text)
		return ctrl.Result{}, nil
	}
	err = d.bridge.Client.Status().Patch(ctx, build, descriptionPatch(due.text))
	forbidden := d.answered(key, err)
	switch {
	case apierrors.IsNotFound(err):
		d.settled(key, due.text)
		return ctrl.Result{}, nil
	case err != nil && permanent(err, forbidden, cmp.Or(d.bridge.forbiddenFor, forbiddenFor)):
		d.bridge.Logger.With(buildlog.Of(build)...).Error("The description cannot be stored; it is left out", "error", err)
		d.settled(key, due.text)
		return ctrl.Result{}, nil
	case err != nil:
		return ctrl.Result{}, err
	}
	d.wrote(key, due.text, build.ResourceVersion)
	return ctrl.Result{}, nil
}

// behind tells whether the cache shows a build as it was before the write that made it this version.
func behind(cached *v1alpha1.ZuulBuild, version string) bool {
	if version == "" {
		return false
	}
	order, err := resourceversion.CompareResourceVersion(cached.ResourceVersion, version)
	return err == nil && order < 0
}

// descriptionPatch says what the description shall be, whatever it is: the cache it was compared with may be late.
func descriptionPatch(text string) client.Patch {
	value := &text
	if text == "" {
		value = nil // removes it
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"description": value}})
	if err != nil {
		panic(fmt.Sprintf("a string is always JSON: %v", err))
	}
	return client.RawPatch(types.MergePatchType, patch)
}
