package daemon

import (
	"context"
	"errors"
	"testing"
)

func TestAFailedPartEndsTheRest(t *testing.T) {
	t.Parallel()
	cause := errors.New("listener died")
	for _, tt := range []struct {
		name string
		part func(context.Context) error
		want error
	}{
		{"it fails", func(context.Context) error { return cause }, cause},
		{"it ends on its own", func(context.Context) error { return nil }, nil},
	} {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var g group
		g.start(ctx, stop, func(ctx context.Context) error { <-ctx.Done(); return nil })
		g.start(ctx, stop, tt.part)
		if err := g.wait(); !errors.Is(err, tt.want) {
			t.Errorf("%s: wait returned %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestAPartThatIsStoppedEndsAlone(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var g group
	wait := func(ctx context.Context) error { <-ctx.Done(); return nil }
	g.start(ctx, stop, wait)
	one := g.start(ctx, stop, wait)
	one.end()
	<-one.over
	if ctx.Err() != nil {
		t.Error("the rest ends with a part that was stopped")
	}
	stop()
	if err := g.wait(); err != nil {
		t.Error(err)
	}
}
