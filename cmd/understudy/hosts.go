package main

// Asking every host at once, through this one's daemon.

import (
	"context"
	"errors"
	"sync"
	"time"

	"understudy/ownership"
	"understudy/status"
)

// hostLimit is how long a host may take to answer where all are asked.
const hostLimit = 3 * time.Second

// said is what one host answers.
type said[T any] struct {
	Host  ownership.HostID
	Value T
	Err   error // it did not, or refused
}

// hosts are the hosts of the configuration, in its order, by this host's daemon.
func hosts(ctx context.Context, local *status.Client) ([]ownership.HostID, error) {
	var list status.HostList
	if err := local.Get(ctx, "/api/v1/hosts", &list); err != nil {
		return nil, err
	}
	return list.Hosts, nil
}

// everyHost asks each of the hosts, all at once, each for limit at most, and
// returns their answers in the hosts' order.
func everyHost[T any](ctx context.Context, local *status.Client, hosts []ownership.HostID, limit time.Duration,
	ask func(ctx context.Context, c *status.Client) (T, error)) []said[T] {
	out := make([]said[T], len(hosts))
	var all sync.WaitGroup
	for i, h := range hosts {
		all.Go(func() {
			ctx, cancel := context.WithTimeoutCause(ctx, limit, errors.New("it has not answered within "+limit.String()))
			defer cancel()
			out[i].Host = h
			if out[i].Value, out[i].Err = ask(ctx, local.At(h)); out[i].Err != nil && ctx.Err() != nil {
				out[i].Err = context.Cause(ctx)
			}
		})
	}
	all.Wait()
	return out
}

// silent returns the error of those who did not answer, nil if all did.
func silent[T any](all []said[T]) error {
	for _, one := range all {
		if one.Err != nil {
			return exitError{exitNoDaemon, errors.New("host " + string(one.Host) + " has not answered")}
		}
	}
	return nil
}
