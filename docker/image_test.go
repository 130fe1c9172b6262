package docker

import (
	"os"
	"regexp"
	"testing"
	"time"
)

// Docker kills processes that have not ended 10 s after "docker stop".
func TestImageEndsWithinTheTimeOfDocker(t *testing.T) {
	text, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^ENV (?:.*\\\n)*.*DRAIN_TIMEOUT=(\S+)`).FindSubmatch(text)
	if found == nil {
		t.Fatal("the image sets no DRAIN_TIMEOUT: by default it is 30s")
	}
	drain, err := time.ParseDuration(string(found[1]))
	if err != nil || drain < 5*time.Second || drain > 9*time.Second {
		t.Errorf("DRAIN_TIMEOUT=%s (%v), want a time that leaves Docker's 10s a second to spare", found[1], err)
	}
}

// An image that is built without VERSION has the version of the source, in the
// label too.
func TestImageHasTheVersionOfTheSource(t *testing.T) {
	find := func(path, pattern string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(pattern).FindSubmatch(text)
		if found == nil {
			t.Fatalf("%s has nothing like %s", path, pattern)
		}
		return string(found[1])
	}
	source := find("../cmd/understudy/version.go", `(?m)^const release = "(.+)"$`)
	if image := find("Dockerfile", `(?m)^ARG VERSION=(.*)$`); image != source {
		t.Errorf("the Dockerfile has version %s, the source has %s", image, source)
	}
}
