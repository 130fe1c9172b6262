// Package browsertest shows pages to a real browser, for tests: Chromium without a
// window. It records everything that a page does wrong.
package browsertest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// patience is the time for which a test waits for the browser, also on a machine that
// does many other things.
const patience = time.Minute

// names are those of the program, in Debian and elsewhere.
var names = []string{"chromium", "chromium-browser", "google-chrome", "chrome"}

// Browser is a browser with one page.
type Browser struct {
	tb   testing.TB
	ctx  context.Context
	host string // of the pages that it is to show

	mu       sync.Mutex
	problems []string
	requests int
}

// Open starts a browser for the pages of base, and ends it with the test. The test is
// skipped where there is none.
func Open(tb testing.TB, base string) *Browser {
	tb.Helper()
	path := ""
	for _, name := range names {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		tb.Skip("SKIPPED: chromium is not installed (make test-deps)")
	}
	at, err := url.Parse(base)
	if err != nil {
		tb.Fatal(err)
	}
	b := &Browser{tb: tb, host: at.Host}
	dir, err := os.MkdirTemp("", "browser") // what Chromium makes there would stay when it is killed
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) }) // one of its processes may still be ending
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.DisableGPU,
		chromedp.Flag("disable-component-update", true),
		// Nothing leaves this machine.
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
		chromedp.WSURLReadTimeout(patience),
		chromedp.Env("TMPDIR="+dir),
	)
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox) // root has none
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	tb.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	tb.Cleanup(cancel)
	b.ctx = ctx
	b.must(chromedp.Listen(ctx, b.note))
	call(b, network.Enable, network.EnableParams{})
	call(b, log.Enable, cdp.Empty{})
	return b
}

// note records what a page does.
func (b *Browser) note(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	problem := func(format string, args ...any) { b.problems = append(b.problems, fmt.Sprintf(format, args...)) }
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		b.requests++
		if at, err := url.Parse(e.Request.URL); err != nil || at.Host != b.host {
			problem("request elsewhere: %s", e.Request.URL)
		}
	case *runtime.EventConsoleAPICalled:
		var said []string
		for _, a := range e.Args {
			said = append(said, string(a.Value)+a.Description)
		}
		problem("console: %s: %s", e.Type, strings.Join(said, " "))
	case *runtime.EventExceptionThrown:
		problem("exception: %s %v", e.ExceptionDetails.Text, e.ExceptionDetails.Exception)
	case *log.EventEntryAdded:
		problem("%s: %s %s", e.Entry.Level, e.Entry.Text, e.Entry.URL)
	}
}

// Problems returns what pages have done wrong since the last call: everything on the
// console, and requests to other hosts.
func (b *Browser) Problems() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.problems
	b.problems = nil
	return all
}

// Requests returns the number of requests since the start.
func (b *Browser) Requests() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.requests
}

func (b *Browser) must(err error) {
	b.tb.Helper()
	if err != nil {
		b.tb.Fatal("browser: ", err)
	}
}

func (b *Browser) limited() (context.Context, context.CancelFunc) {
	return context.WithTimeout(b.ctx, patience)
}

// do runs an action within a time limit.
func do[T any](b *Browser, a chromedp.Action[T]) T {
	b.tb.Helper()
	ctx, cancel := b.limited()
	defer cancel()
	v, err := chromedp.Run(ctx, a)
	b.must(err)
	return v
}

func call[P, R any](b *Browser, c cdp.Command[P, R], params P) {
	b.tb.Helper()
	ctx, cancel := b.limited()
	defer cancel()
	_, err := chromedp.Call(ctx, c, params)
	b.must(err)
}

// Go shows a page and waits until it is loaded.
func (b *Browser) Go(address string) {
	b.tb.Helper()
	// On a busy machine the browser's event that the page is loaded is lost now and then.
	var err error
	for range 3 {
		ctx, cancel := context.WithTimeout(b.ctx, patience/3)
		_, err = chromedp.Run(ctx, chromedp.Navigate(address))
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			break
		}
		b.tb.Logf("%s was not loaded within %v", address, patience/3)
	}
	b.must(err)
}

// Click clicks the first element that a selector names, as with the mouse.
func (b *Browser) Click(selector string) {
	b.tb.Helper()
	do(b, chromedp.Click(selector, chromedp.NodeVisible))
}

// Type types text into the element that a selector names.
func (b *Browser) Type(selector, text string) {
	b.tb.Helper()
	do(b, chromedp.SendKeys(selector, text, chromedp.NodeVisible))
}

// Press presses keys; see package kb of chromedp for those that are no characters.
func (b *Browser) Press(keys string) {
	b.tb.Helper()
	do(b, chromedp.KeyEvent(keys))
}

// Text returns the visible text of the first element that a selector names; empty when
// there is none.
func (b *Browser) Text(selector string) string {
	b.tb.Helper()
	return b.String("document.querySelector(" + quote(selector) + ")?.innerText ?? ''")
}

// String returns the value of an expression of JavaScript.
func (b *Browser) String(expression string) string {
	b.tb.Helper()
	return evaluate[string](b, expression)
}

// Number returns the value of an expression of JavaScript.
func (b *Browser) Number(expression string) float64 {
	b.tb.Helper()
	return evaluate[float64](b, expression)
}

// Is returns the value of an expression of JavaScript.
func (b *Browser) Is(expression string) bool { b.tb.Helper(); return evaluate[bool](b, expression) }

// evaluate tries again while the page is being replaced by another one.
func evaluate[T any](b *Browser, expression string) T {
	b.tb.Helper()
	ctx, cancel := b.limited()
	defer cancel()
	for {
		v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
		if err == nil || !strings.Contains(err.Error(), "navigated") && !strings.Contains(err.Error(), "context") {
			b.must(err)
			return v
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			b.must(err)
		}
	}
}

func quote(text string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`).Replace(text) + "'"
}

// Size sets the size of the page in pixels of CSS; a narrow one is that of a phone.
func (b *Browser) Size(width, height int64) {
	b.tb.Helper()
	call(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: width, Height: height, DeviceScaleFactor: 1, Mobile: width < 600,
	})
}

// Dark sets whether the user prefers dark pages.
func (b *Browser) Dark(dark bool) {
	b.tb.Helper()
	value := "light"
	if dark {
		value = "dark"
	}
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: value}},
	})
}

// Scripts sets whether pages may run scripts.
func (b *Browser) Scripts(on bool) {
	b.tb.Helper()
	call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: !on})
}

// Picture returns what the page looks like, as PNG: as much as its size shows, or all
// of it.
func (b *Browser) Picture(all bool) []byte {
	b.tb.Helper()
	if all {
		return do(b, chromedp.FullScreenshot(100))
	}
	return do(b, chromedp.CaptureScreenshot())
}
