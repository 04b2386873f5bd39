package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

const (
	// stopLimit bounds how long a worker may take to answer stop:.
	stopLimit = 30 * time.Second
	// giveUpLimit is the same once --timeout has passed.
	giveUpLimit = 5 * time.Second
)

// submission is a build to submit and follow.
type submission struct {
	options  *submitOptions
	request  zuulclient.Request
	dialect  zuulclient.Dialect
	tls      *tls.Config
	progress *progress
}

// run submits the build and follows it. The state is that of the build as far
// as it came; the error is nil for SUCCESS, else an exitError.
func (s *submission) run(parent context.Context) (zuulclient.State, error) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)

	// What is asked to end by its caller still has a build to stop, so the
	// build is followed in a context of its own.
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	defer cancel()
	if s.options.timeout > 0 {
		var stop context.CancelFunc
		parent, stop = context.WithTimeoutCause(parent, s.options.timeout, errTimeout)
		defer stop()
	}
	client, build, err := s.submit(parent)
	if err != nil {
		state := zuulclient.State{UUID: s.request.UUID, Job: s.request.Job, Node: s.request.Node, Function: s.request.Function()}
		return state, err
	}
	f := &follower{submission: s, build: build, signals: signals, stopAnswers: make(chan error, 2)}
	state, err := f.follow(ctx, parent)
	cancel()
	_ = client.Close()
	f.stopping.Wait()
	return state, err
}

// submit connects, waits for the job to be registered and submits the build.
func (s *submission) submit(parent context.Context) (*zuulclient.Client, *zuulclient.Build, error) {
	ctx, stop := signal.NotifyContext(parent, os.Interrupt, syscall.SIGTERM)
	defer stop()
	server, function := s.options.server, s.request.Function()
	client, err := zuulclient.Dial(ctx, server, s.tls, s.dialect)
	if err != nil {
		return nil, nil, exitError{whyEnded(ctx, err),
			fmt.Errorf("cannot reach the Gearman server at %s: %w; is it running, and is --gearman right?", server, err)}
	}
	build, err := s.submitTo(ctx, client, function)
	if err == nil {
		s.progress.say("%s submitted to %s, UUID %s", function, server, s.request.UUID)
		return client, build, nil
	}
	if errors.Is(err, zuulclient.ErrNotRegistered) {
		err = fmt.Errorf("%w at %s, %s", err, server, s.offers(ctx, client))
	} else {
		err = fmt.Errorf("submit %s to the Gearman server at %s: %w", function, server, err)
	}
	_ = client.Close()
	return nil, nil, exitError{whyEnded(ctx, err), err}
}

func (s *submission) submitTo(ctx context.Context, client *zuulclient.Client, function string) (*zuulclient.Build, error) {
	registered, err := client.Registered(ctx, function)
	switch {
	case err != nil:
		return nil, err
	case !registered && s.options.noWaitRegistered:
		return nil, fmt.Errorf("%w: no worker has registered %s", zuulclient.ErrNotRegistered, function)
	case !registered:
		s.progress.say("waiting for a worker to register %s", function)
		if err := client.AwaitRegistered(ctx, function); err != nil {
			return nil, err
		}
	}
	return client.Submit(ctx, s.request)
}

// offers says which jobs could have been meant.
func (s *submission) offers(ctx context.Context, client *zuulclient.Client) string {
	const shown = 5
	names, err := client.Functions(ctx)
	if err != nil {
		return "and its functions cannot be listed: " + err.Error()
	}
	isNot := func(prefix string) func(string) bool {
		return func(name string) bool { return !strings.HasPrefix(name, prefix) }
	}
	names = slices.DeleteFunc(names, isNot("build:"))
	if len(names) == 0 {
		return "where no job at all is offered; is the worker connected to that server?"
	}
	if alike := slices.DeleteFunc(slices.Clone(names), isNot("build:"+s.request.Job)); len(alike) > 0 {
		names = alike
	}
	text := "which knows " + strings.Join(names[:min(shown, len(names))], ", ")
	if len(names) > shown {
		text += fmt.Sprintf(" and %d more", len(names)-shown)
	}
	return text
}

// follower sees a submitted build to its end.
type follower struct {
	*submission
	build       *zuulclient.Build
	signals     <-chan os.Signal
	stopping    sync.WaitGroup
	stopAnswers chan error // has room for the answer and for parentEnded
	stopAsked   bool
	interrupted bool
	// leaving is set if the command ends once stop: was answered or could
	// not be sent.
	leaving error
}

// follow returns when the build has ended or nothing more is to be done for
// it. ctx bounds what it does; the end of parent has it stop the build.
func (f *follower) follow(ctx, parent context.Context) (zuulclient.State, error) {
	redraw := time.NewTicker(f.progress.interval())
	defer redraw.Stop()
	asked := parent.Done()
	var stopTime <-chan time.Time
	for {
		state, changed := f.build.Observe()
		f.progress.show(state, time.Now())
		if state.Ended() {
			return state, f.end(state)
		}
		if f.options.stops && stopTime == nil && !state.Started.IsZero() {
			stopTime = time.After(time.Until(state.Started.Add(f.options.stopAfter)))
		}
		select {
		case <-changed:
		case <-redraw.C:
		case <-stopTime:
			f.stop(ctx, stopLimit, "--stop-after passed")
		case <-f.signals:
			if f.stopAsked {
				return state, exitError{exitInterrupted, fmt.Errorf("left build %s before its end", state.UUID)}
			}
			f.interrupted = true
			f.stop(ctx, stopLimit, "interrupted; once more to leave at once")
		case <-asked:
			asked = nil
			f.parentEnded(ctx, context.Cause(parent))
		case err := <-f.stopAnswers:
			switch {
			case err != nil && f.interrupted:
				return state, exitError{exitTrouble, fmt.Errorf("left build %s running: it cannot be stopped: %w", state.UUID, err)}
			case err != nil:
				f.progress.say("the build cannot be stopped: %v", err)
			}
			if f.leaving != nil {
				return f.build.State(), f.leaving
			}
		}
	}
}

func (f *follower) parentEnded(ctx context.Context, cause error) {
	if !errors.Is(cause, errTimeout) {
		f.interrupted = true
		f.stop(ctx, stopLimit, cause.Error())
		return
	}
	f.leaving = exitError{exitTimeout, fmt.Errorf("gave up on build %s after %v", f.request.UUID, f.options.timeout)}
	if f.stopAsked { // and that had its time
		f.stopAnswers <- nil
		return
	}
	f.stop(ctx, giveUpLimit, errTimeout.Error())
}

// stop cancels the build in the background, once.
func (f *follower) stop(ctx context.Context, limit time.Duration, reason string) {
	if f.stopAsked {
		return
	}
	f.stopAsked = true
	f.progress.say("stopping the build: %s", reason)
	f.stopping.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		f.stopAnswers <- cancelBuild(ctx, f.build)
	})
}

// cancelBuild cancels as Zuul does, but hears the worker's answer too.
func cancelBuild(ctx context.Context, build *zuulclient.Build) error {
	cancellation, err := build.Cancel(ctx)
	if err != nil || cancellation.Dequeued {
		return err
	}
	answer, err := cancellation.Stop.Wait(ctx)
	if err != nil {
		return fmt.Errorf("no answer to %s: %w", cancellation.Stop.Function, err)
	}
	if answer.Type != gearman.PacketWorkComplete {
		return fmt.Errorf("the worker of %s answered %v", cancellation.Stop.Function, answer.Type)
	}
	return nil
}

// end is the exit of a build that has ended.
func (f *follower) end(state zuulclient.State) error {
	if err := f.build.Err(); err != nil {
		return exitError{exitTrouble, fmt.Errorf("lost sight of build %s at %s: %w", state.UUID, f.options.server, err)}
	}
	if f.leaving != nil {
		return f.leaving
	}
	return exitOf(state)
}

// exitOf returns nil for SUCCESS, else what to exit with.
func exitOf(state zuulclient.State) error {
	var code int
	var what string
	switch state.Outcome {
	case zuulclient.Decided:
		if state.Result == "SUCCESS" {
			return nil
		}
		code, what = exitOtherResult, "ended with "+printable(state.Result)
	case zuulclient.Canceled:
		code, what = exitOtherResult, "was stopped"
	case zuulclient.Retry, zuulclient.Lost:
		code, what = exitNoResult, "ended without a result"
	default:
		code, what = exitTrouble, "ended in a way that Zuul does not understand"
		if last := len(state.Violations) - 1; last >= 0 {
			what += ": " + printable(state.Violations[last].Text)
		}
	}
	return exitError{code, fmt.Errorf("build %s of %s %s", state.UUID, state.Job, what)}
}
