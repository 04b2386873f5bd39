package controllers

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/test/recorded"
)

// TestRecorded: the first verdict on a Pod of a real kubelet, asked for whenever it changed, is the one that its build got.
func TestRecorded(t *testing.T) {
	cases, err := recorded.Load()
	if err != nil {
		t.Fatal(err)
	}
	moments := 0
	for _, c := range cases {
		for i, history := range c.Pods {
			moments += len(history.Moments)
			t.Run(fmt.Sprintf("%s/%d", c.Name, i), func(t *testing.T) {
				if diff := cmp.Diff(&history.Verdict, replay(history, timeoutsOf(&v1alpha1.ZuulJob{Spec: v1alpha1.ZuulJobSpec{Timeouts: &c.Timeouts}}, nil))); diff != "" {
					t.Errorf("verdict (-recorded +now):\n%s", diff)
				}
			})
		}
	}
	const least = 100
	if moments < least {
		t.Errorf("Pods are recorded at %d moments, fewer than %d", moments, least)
	}
}

// replay asks for a verdict when a Pod changed, and, because of the clocks, just before it changed again.
func replay(history recorded.History, limits timeouts) *recorded.Verdict {
	for i, moment := range history.Moments {
		until := history.Time
		if i+1 < len(history.Moments) {
			until = history.Moments[i+1].Time
		}
		for _, now := range []time.Time{moment.Time.Time, until.Time} {
			if v := decide(facts{pod: moment.Pod, limits: limits, now: now}); v != nil {
				return &recorded.Verdict{Phase: v.phase, Result: v.result, Reason: v.reason, Message: v.message}
			}
		}
	}
	return nil
}
