//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// watchers is the number of browsers that watch a variant with an admin listener.
const watchers = 10

// audience asks the admin listener of a variant for what it has: the events of the page for
// several watchers, and the metrics each second.
type audience struct {
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu  sync.Mutex
	err error // the first failure
}

// adminOf returns the address of --admin among the flags of a variant; empty when there is
// none.
func adminOf(flags []string) string {
	for i, f := range flags {
		if value, found := strings.CutPrefix(f, "--admin="); found {
			return value
		}
		if f == "--admin" && i+1 < len(flags) {
			return flags[i+1]
		}
	}
	return ""
}

// attend starts an audience and waits until everybody in it has got something.
func attend(ctx context.Context, admin string) (*audience, error) {
	ctx, stop := context.WithCancel(ctx)
	a := &audience{stop: stop}
	got := make(chan struct{}, watchers+1)
	for range watchers {
		a.start(ctx, func() error { return follow(ctx, "http://"+admin+"/stream", got) })
	}
	a.start(ctx, func() error { return scrape(ctx, "http://"+admin+"/metrics", got) })
	for range watchers + 1 {
		select {
		case <-got:
		case <-time.After(setupTimeout):
			return nil, errors.Join(fmt.Errorf("not everybody who asks %s gets an answer within %v", admin, setupTimeout), a.leave())
		}
	}
	return a, nil
}

// start runs part of the audience. It must not end before the audience leaves.
func (a *audience) start(ctx context.Context, part func() error) {
	a.wg.Go(func() {
		err := part()
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.err == nil && ctx.Err() == nil {
			a.err = fmt.Errorf("audience: %w", err)
		}
	})
}

// leave ends the audience and returns its first failure.
func (a *audience) leave() error {
	a.stop()
	a.wg.Wait()
	return a.err
}

// get asks for a URL.
func get(ctx context.Context, url string) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close() // the status is the error
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return resp.Body, nil
}

// follow reads server-sent events until ctx ends, and reports the first batch of them.
func follow(ctx context.Context, url string, got chan<- struct{}) error {
	body, err := get(ctx, url)
	if err != nil {
		return err
	}
	defer body.Close()
	in := bufio.NewReader(body)
	for first := true; ; {
		line, err := in.ReadString('\n')
		if err != nil {
			return fmt.Errorf("%s: %w", url, err)
		}
		if first && strings.HasPrefix(line, "id: ") {
			first = false
			got <- struct{}{}
		}
	}
}

// scrape asks for the metrics each second until ctx ends.
func scrape(ctx context.Context, url string, got chan<- struct{}) error {
	for first := true; ; first = false {
		body, err := get(ctx, url)
		if err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, body)
		_ = body.Close() // all of it was read
		if err != nil || n == 0 {
			return fmt.Errorf("%s: %d bytes, %w", url, n, err)
		}
		if first {
			got <- struct{}{}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}
