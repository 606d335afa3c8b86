package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
)

// administrator is the user of Client, RESTConfig and Kubeconfig.
const administrator = "lab-admin"

const masters = "system:masters"

// prepareClients issues the administrator's certificate.
func (l *Lab) prepareClients() error {
	admin, err := l.ca.client(administrator, masters)
	if err != nil {
		return err
	}
	l.admin = admin
	pair, err := tls.X509KeyPair(admin.cert, admin.key)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(l.ca.cert)
	l.adminTLS = &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots}
	return nil
}

// RESTConfig reaches the API server as an administrator from this process,
// which need not be in the lab: the connections are opened inside.
func (l *Lab) RESTConfig() *rest.Config { return l.restConfig(l.admin) }

// RESTConfigFor is RESTConfig as another user, in the groups.
func (l *Lab) RESTConfigFor(user string, groups ...string) (*rest.Config, error) {
	pair, err := l.ca.client(user, groups...)
	if err != nil {
		return nil, err
	}
	return l.restConfig(pair), nil
}

func (l *Lab) restConfig(pair keyPair) *rest.Config {
	return &rest.Config{
		Host:            l.apiURL(),
		TLSClientConfig: rest.TLSClientConfig{CAData: l.ca.pem(), CertData: pair.cert, KeyData: pair.key},
		Dial:            l.control.Dial,
		QPS:             1000, Burst: 1000,
		UserAgent: "hoplite-lab",
	}
}

// Scheme knows Kubernetes' own types and Hoplite's.
func Scheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err) // two packages claim one kind: a mistake at compile time
		}
	}
	return scheme
}

// Client is an administrator's client for every type in Scheme. It does not cache.
func (l *Lab) Client() client.Client { return l.client }

// kubeconfig is a kubeconfig file that works inside the lab's network namespaces.
func (l *Lab) kubeconfig(user string, pair keyPair) ([]byte, error) {
	config := clientcmdapi.NewConfig()
	config.Clusters["lab"] = &clientcmdapi.Cluster{Server: l.apiURL(), CertificateAuthorityData: l.ca.pem()}
	config.AuthInfos[user] = &clientcmdapi.AuthInfo{ClientCertificateData: pair.cert, ClientKeyData: pair.key}
	config.Contexts["lab"] = &clientcmdapi.Context{Cluster: "lab", AuthInfo: user}
	config.CurrentContext = "lab"
	return clientcmd.Write(*config)
}

// Kubeconfig writes an administrator's kubeconfig. It serves processes in the
// lab's network namespaces: `ip netns exec <lab>-node1 kubectl --kubeconfig ...`.
func (l *Lab) Kubeconfig(path string) error {
	content, err := l.kubeconfig(administrator, l.admin)
	if err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o600)
}

// Kubectl prepares kubectl as an administrator. It runs on the control machine's network, and sees the host's files.
func (l *Lab) Kubectl(ctx context.Context, args ...string) *Cmd {
	cmd := l.control.NetCommand(ctx, l.cfg.server("kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(l.dir(), adminKubeconfig))
	return cmd
}

// fieldOwner is the lab's name in server-side apply.
const fieldOwner = client.FieldOwner("hoplite-lab")

// Apply creates or changes objects as `kubectl apply --server-side` would; each needs its TypeMeta.
func (l *Lab) Apply(ctx context.Context, objects ...client.Object) error {
	for _, o := range objects {
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			return err
		}
		u := &unstructured.Unstructured{Object: content}
		unstructured.RemoveNestedField(u.Object, "status")
		unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
		if err := l.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), fieldOwner, client.ForceOwnership); err != nil {
			return fmt.Errorf("apply %s %s: %w", u.GetKind(), u.GetName(), err)
		}
	}
	return nil
}

// ApplyYAML is Apply for a stream of YAML documents.
func (l *Lab) ApplyYAML(ctx context.Context, documents []byte) error {
	objects, err := decode(documents)
	if err != nil {
		return err
	}
	return l.Apply(ctx, objects...)
}

func decode(documents []byte) ([]client.Object, error) {
	var objects []client.Object
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(documents), 4096)
	for {
		u := &unstructured.Unstructured{}
		if err := decoder.Decode(&u.Object); errors.Is(err, io.EOF) {
			return objects, nil
		} else if err != nil {
			return nil, err
		}
		if len(u.Object) > 0 {
			objects = append(objects, u)
		}
	}
}

// applyFiles applies every YAML file that matches the pattern below the checkout.
func (l *Lab) applyFiles(ctx context.Context, pattern string) ([]client.Object, error) {
	files, err := filepath.Glob(filepath.Join(l.cfg.Root, pattern))
	if err != nil {
		return nil, err
	}
	var all []client.Object
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		objects, err := decode(content)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if err := l.Apply(ctx, objects...); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, objects...)
	}
	return all, nil
}

// resources applies Hoplite's resource definitions and waits until the API server serves them.
func (l *Lab) resources(ctx context.Context) error {
	crds, err := l.applyFiles(ctx, "deploy/crds/*.yaml")
	if err != nil {
		return err
	}
	if len(crds) == 0 {
		return fmt.Errorf("no resource definitions in %s/deploy/crds", l.cfg.Root)
	}
	for _, crd := range crds {
		what := "wait until the API server serves " + crd.GetName()
		if err := until(ctx, 20*time.Millisecond, what, func() error { return l.established(ctx, crd.GetName()) }); err != nil {
			return err
		}
	}
	_, err = l.applyFiles(ctx, "deploy/admission/*.yaml")
	return err
}

func (l *Lab) established(ctx context.Context, name string) error {
	crd := &unstructured.Unstructured{}
	crd.SetAPIVersion("apiextensions.k8s.io/v1")
	crd.SetKind("CustomResourceDefinition")
	if err := l.client.Get(ctx, client.ObjectKey{Name: name}, crd); err != nil {
		return err
	}
	conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
	for _, c := range conditions {
		if c, ok := c.(map[string]any); ok && c["type"] == "Established" && c["status"] == "True" {
			return nil
		}
	}
	return errors.New("not established")
}
