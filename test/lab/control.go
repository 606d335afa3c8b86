package lab

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"
)

// Files of the control machine. Its /run is memory: nothing of it outlives the lab.
const (
	pkiDir      = "/run/kubernetes"
	etcdData    = "/run/etcd"
	auditLog    = "/run/kubernetes/audit.log"
	auditPolicy = "/run/kubernetes/audit-policy.yaml"
)

const (
	etcdAddress = "127.0.0.1:2379"
	apiPort     = 6443
)

// Every request is counted once, when its headers are answered or, if it is
// short, when it is done; a watch as soon as it begins.
const auditRules = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
`

// controlPlane starts etcd and the API server on the control machine and waits until both serve.
func (l *Lab) controlPlane(ctx context.Context) error {
	if err := l.controlFiles(); err != nil {
		return err
	}
	l.etcd = l.control.newProcess("etcd", append([]string{l.cfg.server("etcd")}, etcdFlags()...)...)
	l.apiserver = l.control.newProcess("kube-apiserver", append([]string{l.cfg.server("kube-apiserver")}, l.apiserverFlags()...)...)
	if err := l.etcd.Start(); err != nil {
		return err
	}
	return l.StartAPIServer(ctx)
}

func etcdFlags() []string {
	return []string{
		"--name=lab", "--data-dir=" + etcdData, "--unsafe-no-fsync",
		"--listen-client-urls=http://" + etcdAddress, "--advertise-client-urls=http://" + etcdAddress,
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=lab=http://127.0.0.1:2380",
		"--log-level=warn",
	}
}

func (l *Lab) apiserverFlags() []string {
	return []string{
		"--etcd-servers=http://" + etcdAddress,
		"--advertise-address=" + l.control.Addresses[0].String(),
		fmt.Sprintf("--secure-port=%d", apiPort),
		"--tls-cert-file=" + pkiDir + "/server.crt", "--tls-private-key-file=" + pkiDir + "/server.key",
		"--client-ca-file=" + pkiDir + "/ca.crt",
		"--service-account-issuer=https://hoplite-lab",
		"--service-account-key-file=" + pkiDir + "/server.key", "--service-account-signing-key-file=" + pkiDir + "/server.key",
		"--service-cluster-ip-range=10.96.0.0/16",
		"--authorization-mode=RBAC",
		"--endpoint-reconciler-type=none",
		"--allow-privileged",
		// Nobody runs the controllers that these wait for.
		"--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
		"--audit-policy-file=" + auditPolicy, "--audit-log-path=" + auditLog, "--audit-log-mode=blocking",
	}
}

func (l *Lab) controlFiles() error {
	addresses := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, a := range l.control.Addresses {
		addresses = append(addresses, a.AsSlice())
	}
	server, err := l.ca.server([]string{"localhost", "kubernetes", "kubernetes.default.svc"}, addresses)
	if err != nil {
		return err
	}
	for file, content := range map[string][]byte{
		pkiDir + "/ca.crt":     l.ca.pem(),
		pkiDir + "/server.crt": server.cert,
		pkiDir + "/server.key": server.key,
		auditPolicy:            []byte(auditRules),
	} {
		if err := l.control.WriteFile(file, content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// StartAPIServer starts the API server, with the data it had, and waits until it is ready.
func (l *Lab) StartAPIServer(ctx context.Context) error {
	if err := l.apiserver.Start(); err != nil {
		return err
	}
	// Not a client of its own choosing: ready means that a new connection is answered.
	transport := &http.Transport{DialContext: l.control.Dial, TLSClientConfig: l.adminTLS, DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	return l.apiserver.waitFor(ctx, "ready", func() error { return checkHTTP(ctx, client, l.apiURL()+"/readyz") })
}

// StopAPIServer ends the API server as a crash or a cut cable would: at once,
// without a word to its clients. The data stays.
func (l *Lab) StopAPIServer() { l.apiserver.Kill() }

// StartEtcd starts etcd again, with the data it had. It does not wait.
func (l *Lab) StartEtcd() error { return l.etcd.Start() }

// StopEtcd ends etcd at once. The data stays.
func (l *Lab) StopEtcd() { l.etcd.Kill() }

func (l *Lab) apiURL() string {
	return fmt.Sprintf("https://%s", net.JoinHostPort(l.control.Addresses[0].String(), fmt.Sprint(apiPort)))
}
