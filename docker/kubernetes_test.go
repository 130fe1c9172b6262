package docker

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"understudy/config"
	"understudy/internal/proctest"
)

// The fields that kubernetes.yaml may have, with the names and types of
// Kubernetes' API, which has many more.
type (
	labels map[string]string

	metadata struct {
		Name   string `yaml:"name"`
		Labels labels `yaml:"labels"`
	}
	configMap struct {
		APIVersion string            `yaml:"apiVersion"`
		Kind       string            `yaml:"kind"`
		Metadata   metadata          `yaml:"metadata"`
		Data       map[string]string `yaml:"data"`
	}
	service struct {
		APIVersion string   `yaml:"apiVersion"`
		Kind       string   `yaml:"kind"`
		Metadata   metadata `yaml:"metadata"`
		Spec       struct {
			Selector labels `yaml:"selector"`
			Ports    []struct {
				Name       string `yaml:"name"`
				Port       int    `yaml:"port"`
				TargetPort string `yaml:"targetPort"`
			} `yaml:"ports"`
		} `yaml:"spec"`
	}
	deployment struct {
		APIVersion string   `yaml:"apiVersion"`
		Kind       string   `yaml:"kind"`
		Metadata   metadata `yaml:"metadata"`
		Spec       struct {
			Replicas int `yaml:"replicas"`
			Strategy struct {
				Type string `yaml:"type"`
			} `yaml:"strategy"`
			Selector struct {
				MatchLabels labels `yaml:"matchLabels"`
			} `yaml:"selector"`
			Template struct {
				Metadata struct {
					Labels labels `yaml:"labels"`
				} `yaml:"metadata"`
				Spec pod `yaml:"spec"`
			} `yaml:"template"`
		} `yaml:"spec"`
	}
	pod struct {
		AutomountServiceAccountToken  bool `yaml:"automountServiceAccountToken"`
		EnableServiceLinks            bool `yaml:"enableServiceLinks"`
		TerminationGracePeriodSeconds int  `yaml:"terminationGracePeriodSeconds"`
		SecurityContext               struct {
			RunAsNonRoot   bool  `yaml:"runAsNonRoot"`
			RunAsUser      int64 `yaml:"runAsUser"`
			RunAsGroup     int64 `yaml:"runAsGroup"`
			FSGroup        int64 `yaml:"fsGroup"`
			SeccompProfile struct {
				Type string `yaml:"type"`
			} `yaml:"seccompProfile"`
		} `yaml:"securityContext"`
		Containers []container `yaml:"containers"`
		Volumes    []volume    `yaml:"volumes"`
	}
	container struct {
		Name            string `yaml:"name"`
		Image           string `yaml:"image"`
		ImagePullPolicy string `yaml:"imagePullPolicy"`
		Env             []struct {
			Name  string `yaml:"name"`
			Value string `yaml:"value"`
		} `yaml:"env"`
		Ports []struct {
			Name          string `yaml:"name"`
			ContainerPort int    `yaml:"containerPort"`
		} `yaml:"ports"`
		ReadinessProbe probe `yaml:"readinessProbe"`
		LivenessProbe  probe `yaml:"livenessProbe"`
		Resources      struct {
			Requests map[string]string `yaml:"requests"`
			Limits   map[string]string `yaml:"limits"`
		} `yaml:"resources"`
		SecurityContext struct {
			AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
			ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
			Capabilities             struct {
				Drop []string `yaml:"drop"`
			} `yaml:"capabilities"`
		} `yaml:"securityContext"`
		VolumeMounts []mount `yaml:"volumeMounts"`
	}
	mount struct {
		Name      string `yaml:"name"`
		MountPath string `yaml:"mountPath"`
		ReadOnly  bool   `yaml:"readOnly"`
	}
	probe struct {
		HTTPGet *struct {
			Path string `yaml:"path"`
			Port string `yaml:"port"`
		} `yaml:"httpGet"`
		Exec *struct {
			Command []string `yaml:"command"`
		} `yaml:"exec"`
		PeriodSeconds    int `yaml:"periodSeconds"`
		TimeoutSeconds   int `yaml:"timeoutSeconds"`
		FailureThreshold int `yaml:"failureThreshold"`
	}
	volume struct {
		Name      string `yaml:"name"`
		ConfigMap *struct {
			Name        string `yaml:"name"`
			DefaultMode int    `yaml:"defaultMode"`
		} `yaml:"configMap"`
		EmptyDir *struct {
			Medium    string `yaml:"medium"`
			SizeLimit string `yaml:"sizeLimit"`
		} `yaml:"emptyDir"`
	}
)

// manifest is the content of the file.
type manifest struct {
	configMap  configMap
	service    service
	deployment deployment
}

// parse reads the documents of the file strictly: a key that is not in the types
// above is an error, as are a kind that comes twice and one that is missing.
func parse(text string) (m manifest, err error) {
	kinds := map[string]struct {
		version string
		into    any
	}{
		"ConfigMap":  {"v1", &m.configMap},
		"Service":    {"v1", &m.service},
		"Deployment": {"apps/v1", &m.deployment},
	}
	for doc := range strings.SplitSeq(text, "\n---\n") {
		var head struct {
			APIVersion string `yaml:"apiVersion"`
			Kind       string `yaml:"kind"`
		}
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			return m, err
		}
		k, ok := kinds[head.Kind]
		if !ok || k.version != head.APIVersion {
			return m, fmt.Errorf("%s %s: unknown, or there twice", head.APIVersion, head.Kind)
		}
		delete(kinds, head.Kind)
		strict := yaml.NewDecoder(bytes.NewReader([]byte(doc)))
		strict.KnownFields(true)
		if err := strict.Decode(k.into); err != nil {
			return m, fmt.Errorf("%s: %w", head.Kind, err)
		}
	}
	if len(kinds) > 0 {
		return m, fmt.Errorf("missing: %v", kinds)
	}
	return m, nil
}

var (
	dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	portName = regexp.MustCompile(`^[a-z0-9-]{0,14}[a-z]$`)
	quantity = regexp.MustCompile(`^[0-9]+(m|Ki|Mi|Gi)?$`)
)

// check finds errors in m: fields that Kubernetes would refuse, names that
// refer to nothing, and values that contradict the settings of understudy in
// it.
func (m manifest) check(settings config.Settings) error {
	var errs []error
	must := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	d := m.deployment.Spec
	for _, meta := range []metadata{m.configMap.Metadata, m.service.Metadata, m.deployment.Metadata} {
		must(dnsLabel.MatchString(meta.Name), "metadata.name %q", meta.Name)
	}
	of := func(selector labels) bool {
		for name, value := range selector {
			if d.Template.Metadata.Labels[name] != value {
				return false
			}
		}
		return len(selector) > 0
	}
	must(of(d.Selector.MatchLabels), "the deployment does not select its pods: %v", d.Selector.MatchLabels)
	must(of(m.service.Spec.Selector), "the service does not select the pods: %v", m.service.Spec.Selector)
	must(d.Replicas == 1 && d.Strategy.Type == "Recreate", "there can be two at a time")
	if len(d.Template.Spec.Containers) != 1 {
		return errors.Join(append(errs, errors.New("containers: want one"))...)
	}
	p := d.Template.Spec
	c := p.Containers[0]

	// Privileges.
	s := p.SecurityContext
	must(s.RunAsNonRoot && s.RunAsUser > 0 && s.RunAsGroup > 0 && s.FSGroup > 0 && s.SeccompProfile.Type == "RuntimeDefault", "securityContext of the pod: %+v", s)
	must(c.SecurityContext.AllowPrivilegeEscalation != nil && !*c.SecurityContext.AllowPrivilegeEscalation &&
		c.SecurityContext.ReadOnlyRootFilesystem && slices.Equal(c.SecurityContext.Capabilities.Drop, []string{"ALL"}), "securityContext of the container: %+v", c.SecurityContext)
	must(!p.AutomountServiceAccountToken && !p.EnableServiceLinks, "the pod gets what it does not need")
	must(dnsLabel.MatchString(c.Name) && c.Image != "" && slices.Contains([]string{"Always", "IfNotPresent", "Never"}, c.ImagePullPolicy), "container %q, image %q, %q", c.Name, c.Image, c.ImagePullPolicy)
	for _, list := range []map[string]string{c.Resources.Requests, c.Resources.Limits} {
		for name, text := range list {
			must((name == "cpu" || name == "memory") && quantity.MatchString(text), "resources: %s: %q", name, text)
		}
	}

	// Ports.
	ports := map[string]int{}
	for _, port := range c.Ports {
		must(portName.MatchString(port.Name) && ports[port.Name] == 0, "port name %q", port.Name)
		ports[port.Name] = port.ContainerPort
	}
	listens := map[int]string{portOf(settings.HTTP.Listen): "http"}
	for _, r := range settings.Relays {
		for _, addr := range r.Listen {
			listens[portOf(addr)] = r.Name
		}
		must(time.Duration(p.TerminationGracePeriodSeconds)*time.Second > r.DrainTimeout, "relay %s drains for longer than the grace period", r.Name)
		ready := time.Duration(c.ReadinessProbe.PeriodSeconds*c.ReadinessProbe.FailureThreshold) * time.Second
		must(ready > r.Hold, "relay %s holds clients for %v, and the pod is not ready after %v", r.Name, r.Hold, ready)
	}
	for name, port := range ports {
		must(listens[port] != "", "nothing listens on port %s (%d)", name, port)
	}
	must(len(ports) == len(listens), "ports are %v, and the settings have %v", ports, listens)
	must(len(m.service.Spec.Ports) > 0, "the service has no ports")
	for _, port := range m.service.Spec.Ports {
		must(portName.MatchString(port.Name) && port.Port > 0 && port.Port < 65536, "port of the service: %+v", port)
		must(ports[port.TargetPort] != 0 && listens[ports[port.TargetPort]] != "http", "targetPort %q is no port of a relay", port.TargetPort)
	}

	// Probes.
	for name, probe := range map[string]probe{"readiness": c.ReadinessProbe, "liveness": c.LivenessProbe} {
		must((probe.HTTPGet == nil) != (probe.Exec == nil), "%s probe: want one of httpGet and exec", name)
		must(probe.PeriodSeconds > 0 && probe.TimeoutSeconds > 0 && probe.FailureThreshold > 0, "%s probe: %+v", name, probe)
		if get := probe.HTTPGet; get != nil {
			must(listens[ports[get.Port]] == "http", "%s probe: port %q is not that of the verdicts", name, get.Port)
			must(slices.ContainsFunc(settings.HTTP.Routes, func(r config.Route) bool { return r.Path == get.Path }), "%s probe: there is no route %s", name, get.Path)
		}
		if probe.Exec != nil {
			must(slices.Equal(probe.Exec.Command, []string{"understudy", "status"}), "%s probe runs %q", name, probe.Exec.Command)
		}
	}

	// Settings and volumes.
	writable := func(path string) bool {
		return slices.ContainsFunc(c.VolumeMounts, func(m mount) bool { return m.MountPath == path && !m.ReadOnly })
	}
	must(writable("/tmp"), "there is no place for the control socket")
	must(settings.StateDir == "" || writable(settings.StateDir), "state directory %s is no volume", settings.StateDir)
	file := ""
	for _, e := range c.Env {
		must(slices.ContainsFunc(config.Table(), func(s config.Setting) bool { return s.Env == e.Name }), "%s is no variable of understudy", e.Name)
		if e.Name == "CONFIG" {
			file = e.Value
		}
	}
	found := false
	used := map[string]bool{}
	for _, mount := range c.VolumeMounts {
		i := slices.IndexFunc(p.Volumes, func(v volume) bool { return v.Name == mount.Name })
		must(i >= 0 && filepath.IsAbs(mount.MountPath) && !used[mount.Name], "volume %s at %q: unknown, there twice or nowhere", mount.Name, mount.MountPath)
		used[mount.Name] = true
		if i < 0 {
			continue
		}
		v := p.Volumes[i]
		must((v.ConfigMap == nil) != (v.EmptyDir == nil), "volume %s: want one of configMap and emptyDir", v.Name)
		if v.ConfigMap == nil {
			must(v.EmptyDir == nil || v.EmptyDir.SizeLimit == "" || quantity.MatchString(v.EmptyDir.SizeLimit), "volume %s: %+v", v.Name, v.EmptyDir)
			continue
		}
		must(v.ConfigMap.Name == m.configMap.Metadata.Name, "volume %s: there is no ConfigMap %q", v.Name, v.ConfigMap.Name)
		must(v.ConfigMap.DefaultMode == 0o555, "volume %s: scripts have mode %o", v.Name, v.ConfigMap.DefaultMode)
		for name := range m.configMap.Data {
			found = found || filepath.Join(mount.MountPath, name) == file
		}
	}
	must(found, "CONFIG=%s is not in the ConfigMap", file)
	for _, v := range p.Volumes {
		must(used[v.Name], "volume %s is not mounted", v.Name)
	}
	return errors.Join(errs...)
}

func portOf(addr string) int {
	_, text, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(text)
	return n
}

// mountConfigMap makes a directory such as a pod sees: links to links, so that
// all of it changes at once.
func mountConfigMap(t *testing.T, data map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "..2026"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range data {
		if err := os.WriteFile(filepath.Join(dir, "..2026", name), []byte(text), 0o555); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("..2026", filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// settingsOf are the settings in the ConfigMap, as a pod reads them.
func settingsOf(t *testing.T, m manifest) (config.Settings, error) {
	t.Helper()
	dir := mountConfigMap(t, m.configMap.Data)
	settings, _, err := config.Load(config.Given{
		Environ: []string{"HTTP=", "SCRIPTS_DIR=" + dir, "CONFIG=" + filepath.Join(dir, "understudy.yaml")},
	})
	return settings, err
}

func TestKubernetes(t *testing.T) {
	text, err := os.ReadFile("kubernetes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	m, err := parse(string(text))
	if err != nil {
		t.Fatal(err)
	}
	settings, err := settingsOf(t, m)
	if err == nil {
		err = m.check(settings)
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(settings.Warnings) > 0 {
		t.Errorf("warnings: %q", settings.Warnings)
	}

	// Errors in it are found.
	for _, tt := range []struct{ old, new, want string }{
		{"apiVersion: apps/v1", "apiVersion: v1", "unknown, or there twice"},
		{"kind: ConfigMap", "kind: Service", "field data not found"},
		{"failureThreshold: 3\n          # Alive", "failureTreshold: 3\n          # Alive", "field failureTreshold not found"},
		{"replicas: 1", "replicas: one", "cannot unmarshal"},
		{"selector: {app.kubernetes.io/name: understudy}", "selector: {app: understudy}", "the service does not select the pods"},
		{"matchLabels: {app.kubernetes.io/name: understudy}", "matchLabels: {}", "the deployment does not select its pods"},
		{"targetPort: orders", "targetPort: order", `targetPort "order"`},
		{"targetPort: orders", "targetPort: verdict", `targetPort "verdict"`},
		{"containerPort: 9001", "containerPort: 9000", "nothing listens on port verdict (9000)"},
		{`listen: [":5432"]`, `listen: [":5432", ":5433"]`, "and the settings have"},
		{"port: verdict}", "port: orders}", `port "orders" is not that of the verdicts`},
		{"path: /ping", "path: /pong", "there is no route /pong"},
		{"drain_timeout: 30s", "drain_timeout: 60s", "longer than the grace period"},
		{"periodSeconds: 5\n", "periodSeconds: 1\n", "the pod is not ready after 3s"},
		{"exec: {command: [understudy, status]}", "exec: {command: [understudy, health]}", "liveness probe runs"},
		{"configMap: {name: understudy,", "configMap: {name: overstudy,", `no ConfigMap "overstudy"`},
		{"- name: tmp\n", "- name: temp\n", "volume tmp"},
		{"mountPath: /var/lib/understudy", "mountPath: /var/lib/other", "state directory /var/lib/understudy is no volume"},
		{"value: /etc/understudy/understudy.yaml", "value: /etc/understudy/other.yaml", "is not in the ConfigMap"},
		{"- {name: HTTP,", "- {name: HTP,", "HTP is no variable"},
		{"drop: [ALL]", "drop: []", "securityContext of the container"},
		{"runAsUser: 65534", "runAsUser: 0", "securityContext of the pod"},
		{"memory: 64Mi", "memory: 64MiB", "resources: memory"},
		{"hosts: [db-0", "host: [db-0", "unknown key"},
	} {
		broken := strings.Replace(string(text), tt.old, tt.new, 1)
		if broken == string(text) {
			t.Errorf("%q is not in the file", tt.old)
			continue
		}
		m, err := parse(broken)
		if err == nil {
			if settings, err = settingsOf(t, m); err == nil {
				err = m.check(settings)
			}
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q for %q: %v, want %s", tt.new, tt.old, err, tt.want)
		}
	}
}

// The program accepts the settings too, and the script that the file suggests.
func TestKubernetesSettings(t *testing.T) {
	text, err := os.ReadFile("kubernetes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	suggested := regexp.MustCompile(`(?m)^  # (check-host\.sh|  )`).ReplaceAllString(string(text), "  $1")
	if suggested == string(text) {
		t.Fatal("the file suggests no script")
	}
	m, err := parse(suggested)
	if err != nil {
		t.Fatal(err)
	}
	dir := mountConfigMap(t, m.configMap.Data)
	cmd := exec.CommandContext(t.Context(), proctest.Build(t), "config")
	cmd.Env = []string{"HTTP=", "SCRIPTS_DIR=" + dir, "CONFIG=" + filepath.Join(dir, "understudy.yaml")}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("understudy config: %v\n%s", err, &stderr)
	}
	for _, want := range []string{`relays\[orders\]\.hosts +db-0\.db:5432,db-1\.db:5432 `, `relays\[orders\]\.check_host +` + dir + `/check-host\.sh `} {
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
}
