package webhook

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const secret = "T0KEN"

func TestDeliver(t *testing.T) {
	t.Parallel()
	var got atomic.Pointer[string]
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		text := r.Method + " " + r.URL.Path + " " + r.Header.Get("Content-Type") + " " + string(body)
		got.Store(&text)
		w.WriteHeader(http.StatusNoContent)
	}))
	defer server.Close()
	if err := new(Client).Deliver(t.Context(), server.URL+"/"+secret, []byte(`{"event":"x"}`)); err != nil {
		t.Fatal(err)
	}
	if want := "POST /" + secret + ` application/json {"event":"x"}`; *got.Load() != want {
		t.Errorf("the server got %q, want %q", *got.Load(), want)
	}
}

// answers is a transport that returns statuses in order: 0 for no connection,
// -1 for no response.
type answers struct {
	list  []int
	times []time.Duration
	begin time.Time
}

func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	a.times = append(a.times, time.Since(a.begin))
	status := a.list[min(len(a.times), len(a.list))-1]
	switch status {
	case 0:
		return nil, errors.New("connection refused")
	case -1:
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	res := httptest.NewRecorder()
	res.Header().Set("Location", "http://elsewhere.example/")
	res.WriteHeader(status)
	return res.Result(), nil
}

func TestDeliverTriesAgain(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		answers []int
		want    string // error; empty for none
		at      []int  // seconds
	}{
		{"at once", []int{200}, "", []int{0}},
		{"the server comes back", []int{0, 503, 429, 408, 200}, "", []int{0, 1, 3, 7, 15}},
		{"it does not", []int{0}, "connection refused", []int{0, 1, 3, 7, 15, 31}},
		{"it refuses the message", []int{403}, "the server answered 403", []int{0}},
		{"it redirects", []int{302}, "the server answered 302", []int{0}},
		{"it hangs", []int{-1, 200}, "", []int{0, 6}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &answers{list: tt.answers, begin: time.Now()}
				err := (&Client{Transport: a}).Deliver(t.Context(), "https://user:"+secret+"@x.example/"+secret+"?"+secret, []byte("{}"))
				if got := message(err); got != tt.want {
					t.Errorf("error %q, want %q", got, tt.want)
				}
				if len(a.times) != len(tt.at) {
					t.Fatalf("tried at %v, want %v", a.times, tt.at)
				}
				for i, at := range tt.at {
					if a.times[i] != time.Duration(at)*time.Second {
						t.Errorf("tried at %v, want %v", a.times, tt.at)
					}
				}
			})
		})
	}
}

func TestDeliverEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		begin := time.Now()
		err := (&Client{Transport: &answers{list: []int{0}}}).Deliver(ctx, "http://x.example/", nil)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 2*time.Second {
			t.Errorf("Deliver = %v after %v", err, time.Since(begin))
		}
	})
}

// No error contains the URL.
func TestErrorsKeepTheSecret(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	for _, to := range []string{"http://127.0.0.1:1/" + secret, "http://" + secret + "@127.0.0.1:1/", "http://x/%" + secret, "ftp://x/" + secret, secret} {
		c := &Client{}
		err := c.post(ctx, to, nil)
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("post = %v", err)
		}
	}
	for text, good := range map[string]bool{
		"https://hooks.example/services/T0/B0": true, "http://127.0.0.1:8080": true,
		"hooks.example": false, "ftp://x/" + secret: false, "http:" + secret: false, "http://x/%" + secret: false, "/" + secret: false,
	} {
		if err := Check(text); (err == nil) != good || strings.Contains(message(err), secret) {
			t.Errorf("Check(%q) = %v", text, err)
		}
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
