package main

import (
	"context"
	"errors"
	"sync"

	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// termCache is the cache of another manager, which starts it, for the controllers of one term. When the term ends their handlers go: controllers leave
// them where they are, so each lead that is lost would have every event handled once more, and all that the handlers refer to stay in memory.
type termCache struct {
	cache.Cache

	mu      sync.Mutex
	over    bool
	removes []func() error
}

// Start waits until the term ends.
func (c *termCache) Start(ctx context.Context) error {
	<-ctx.Done()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	var problems []error
	for _, remove := range c.removes {
		problems = append(problems, remove())
	}
	return errors.Join(problems...)
}

// GetInformer gives an informer whose handlers go with the term.
func (c *termCache) GetInformer(ctx context.Context, object client.Object, options ...cache.InformerGetOption) (cache.Informer, error) {
	informer, err := c.Cache.GetInformer(ctx, object, options...)
	if err != nil {
		return nil, err
	}
	return termInformer{informer, c}, nil
}

type termInformer struct {
	cache.Informer
	term *termCache
}

// AddEventHandlerWithOptions is what controllers add their handlers by.
func (i termInformer) AddEventHandlerWithOptions(handler toolscache.ResourceEventHandler, options toolscache.HandlerOptions) (toolscache.ResourceEventHandlerRegistration, error) {
	i.term.mu.Lock()
	defer i.term.mu.Unlock()
	if i.term.over {
		return nil, errors.New("the term of this replica is over")
	}
	registration, err := i.Informer.AddEventHandlerWithOptions(handler, options)
	if err == nil {
		i.term.removes = append(i.term.removes, func() error { return i.RemoveEventHandler(registration) })
	}
	return registration, err
}
