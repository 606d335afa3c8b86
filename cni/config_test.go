package cni

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTheEnvironmentIsChecked(t *testing.T) {
	for _, c := range []struct {
		command, key, value, want string
	}{
		{"", "", "", "CNI_COMMAND"}, {"ADDD", "", "", "ADDD"}, {"add", "", "", "add"},
		{"ADD", "CNI_CONTAINERID", "", "empty"}, {"DEL", "CNI_CONTAINERID", "", "empty"}, {"CHECK", "CNI_CONTAINERID", "", "empty"},
		{"DEL", "CNI_CONTAINERID", "../../etc/passwd", "letters"}, {"ADD", "CNI_CONTAINERID", ".hidden", "letters"},
		{"ADD", "CNI_CONTAINERID", "a@b", "letters"}, {"ADD", "CNI_CONTAINERID", strings.Repeat("a", 201), "200"},
		{"ADD", "CNI_IFNAME", "", "empty"}, {"DEL", "CNI_IFNAME", "..", "not allowed"}, {"DEL", "CNI_IFNAME", "a/b", "'/'"},
		{"ADD", "CNI_IFNAME", "sixteencharacter", "15"}, {"ADD", "CNI_IFNAME", "eth%d", "'%'"}, {"ADD", "CNI_IFNAME", "a b", "white"},
		{"ADD", "CNI_IFNAME", "\xff", "UTF-8"}, {"ADD", "CNI_IFNAME", "a\x01", "control"},
		{"ADD", "CNI_NETNS", "", "CNI_NETNS"}, {"CHECK", "CNI_NETNS", "", "CNI_NETNS"}, {"ADD", "CNI_NETNS", "relative", "full path"},
		{"ADD", "CNI_NETNS", "/run/netns/\xff", "CNI_NETNS"},
		{"ADD", "CNI_ARGS", "FOO=1", "FOO"}, {"ADD", "CNI_ARGS", "nonsense", "KEY=value"},
		{"ADD", "CNI_ARGS", "IgnoreUnknown=maybe", "1 or 0"}, {"ADD", "CNI_ARGS", "K8S_POD_NAME=a\nb", "name"},
		{"ADD", "CNI_ARGS", "K8S_POD_NAME=" + strings.Repeat("a", 254), "name"},
	} {
		n := newNode(t).with("waitForAgent", "0s")
		if c.key != "" {
			n.env[c.key] = c.value
		}
		if e := n.fails(c.command, 4); !strings.Contains(e.Msg, c.want) {
			t.Errorf("%s with %s=%q: %q does not say %q", c.command, c.key, c.value, e.Msg, c.want)
		}
	}
}

func TestTheConfigurationIsChecked(t *testing.T) {
	for _, c := range []struct {
		key, value string // value is JSON
		code       uint
		want       string
	}{
		{"cniVersion", `"0.2.0"`, 1, "1.1.0"}, {"cniVersion", `"1.2.0"`, 1, "1.1.0"}, {"cniVersion", `""`, 1, "0.3.1"},
		{"cniVersion", `3`, 6, "cniVersion"},
		{"name", `""`, 7, "letters"}, {"name", `"a b"`, 7, "letters"}, {"name", `7`, 7, "string"}, {"name", `null`, 7, "string"},
		{"mtu", `1000`, 7, "1280"}, {"mtu", `70000`, 7, "65535"}, {"mtu", `"1500"`, 7, "number"}, {"mtu", `-1`, 7, "number"}, {"mtu", `1500.5`, 7, "number"},
		{"socket", `"agent.sock"`, 7, "full path"}, {"socket", `1`, 7, "string"}, {"socket", `"/` + strings.Repeat("a", 107) + `"`, 7, "107"},
		{"waitForAgent", `10`, 7, `"10s"`}, {"waitForAgent", `"soon"`, 7, `"10s"`}, {"waitForAgent", `"-1s"`, 7, `"10s"`}, {"waitForAgent", `"2m"`, 7, "1m0s"},
		{"ipam", `{"type": "host-local"}`, 7, "IPPool"}, {"ipMasq", `true`, 7, "natOutgoing"},
		{"MTU", `1400`, 7, "Hoplite knows mtu"}, {"mtuu", `1400`, 7, "unknown key"}, {"dns", `[]`, 6, "dns"},
		{"prevResult", `"x"`, 6, "prevResult"},
	} {
		n := newNode(t).with(c.key, json.RawMessage(c.value)).with("waitForAgent", "0s")
		if c.key == "waitForAgent" {
			n = n.with(c.key, json.RawMessage(c.value))
		}
		e := n.fails("ADD", c.code)
		if !strings.Contains(e.Msg, c.want) || !strings.Contains(e.Msg, c.key) {
			t.Errorf("%s: %s: %q does not say %q", c.key, c.value, e.Msg, c.want)
		}
	}
	n := newNode(t)
	for _, stdin := range []string{"", "{", "[]", "null {}", `"x"`} {
		n.stdin = strings.NewReader(stdin)
		n.fails("ADD", 6)
		n.stdin = strings.NewReader(stdin)
		n.fails("DEL", 6)
	}
}

func TestWhatIsOfTheProtocolIsAccepted(t *testing.T) {
	var c config
	err := c.parse([]byte(`{"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "hoplite", "capabilities": {"portMappings": true},
		"runtimeConfig": {"portMappings": []}, "args": {"cni": {}}, "cni.dev/whatever": 1, "disableCheck": true,
		"mtu": 9000, "socket": "/run/h/agent.sock", "waitForAgent": "1.5s", "dns": {"search": ["a"]}}`), false)
	if err != nil {
		t.Fatal(err)
	}
	if c.MTU != 9000 || c.Wait != 1500*time.Millisecond || c.queue() != "/run/h/del" || c.DNS.Search[0] != "a" {
		t.Errorf("got %+v", c)
	}
	c = config{}
	if err := c.parse([]byte(`{"cniVersion": "1.0.0", "name": "n"}`), false); err != nil || c.Socket != "/run/hoplite/agent.sock" ||
		c.Wait != 10*time.Second || c.queue() != "/run/hoplite/del" {
		t.Errorf("defaults %+v, %v", c, err)
	}
}

func TestCommandsAreRefusedToVersionsThatLackThem(t *testing.T) {
	n := newNode(t).with("cni.dev/valid-attachments", []any{})
	n.with("cniVersion", "0.3.1").fails("CHECK", 1)
	for _, v := range []string{"0.3.1", "0.4.0", "1.0.0"} {
		n.with("cniVersion", v).fails("GC", 1)
		if e := n.with("cniVersion", v).fails("STATUS", 1); e.CNIVersion != v {
			t.Errorf("the error's cniVersion is %s, want the configuration's %s", e.CNIVersion, v)
		}
	}
}

func TestVersionNeedsNothing(t *testing.T) {
	for _, path := range []string{"", plugin(t)} {
		n := newNode(t)
		n.exec, n.env, n.stdin = path, nil, strings.NewReader("")
		n.env = map[string]string{}
		want := `{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}`
		if got := strings.TrimSpace(string(n.must("VERSION"))); got != want {
			t.Errorf("got %s", got)
		}
	}
}

func TestCNIArgs(t *testing.T) {
	for args, want := range map[string]pod{
		"": {},
		"K8S_POD_NAMESPACE=ns;K8S_POD_NAME=n;K8S_POD_UID=u;K8S_POD_INFRA_CONTAINER_ID=c": {"ns", "n", "u"},
		"X=1;IgnoreUnknown=true;K8S_POD_NAME=a=b":                                        {name: "a=b"},
		"IgnoreUnknown=1;Y=": {},
	} {
		if got, err := parseArgs(args); err != nil || got != want {
			t.Errorf("%q: %+v, %v", args, got, err)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"cniVersion": "1.1.0", "name": "hoplite", "mtu": 1500, "socket": "/run/x", "waitForAgent": "1s"}`))
	f.Add([]byte(`{"cniVersion": "1.1.0", "prevResult": {"ips": [{"interface": -1}]}, "cni.dev/valid-attachments": [{}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, lenient := range []bool{false, true} {
			var c config
			if err := c.parse(b, lenient); err != nil {
				if e := asError(err); e.Code != 1 && e.Code != 6 && e.Code != 7 {
					t.Errorf("code %d: %v", e.Code, e)
				}
				continue
			}
			if !filepath.IsAbs(c.Socket) || c.Wait < 0 || c.Wait > maxWait || c.MTU != 0 && c.MTU < minMTU {
				t.Errorf("accepted %+v", c)
			}
			if c.PrevResult != nil {
				for _, v := range supportedVersions {
					_ = c.PrevResult.as(v)
				}
				r := invocation{conf: c}
				_, _ = r.checkRequest()
			}
		}
	})
}

func FuzzArgs(f *testing.F) {
	f.Add("IgnoreUnknown=1;K8S_POD_NAME=a")
	f.Fuzz(func(t *testing.T, args string) {
		p, err := parseArgs(args)
		if err == nil && !(printable(p.name) && printable(p.namespace) && printable(p.uid) && len(p.name) <= maxArg) {
			t.Errorf("accepted %+v", p)
		}
	})
}
