package agentrpc

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
)

// requests and responses pair each method with its types here; nil: a message without fields.
var requests = map[string]interface{ encode() encoder }{
	"Add": &AddRequest{}, "Del": &DelRequest{}, "Check": &CheckRequest{}, "GC": &GCRequest{}, "Status": nil,
}

var responses = map[string]interface{ decode([]byte) error }{
	"Add": &AddResponse{}, "Del": nil, "Check": nil, "GC": &GCResponse{}, "Status": &StatusResponse{},
}

// TestEveryMessageIsTheContracts holds each struct against the generated
// message, every field set. It fails when the contract gains a method or a field.
func TestEveryMessageIsTheContracts(t *testing.T) {
	methods := agentv1.File_api_agent_v1_agent_proto.Services().ByName("CNI").Methods()
	if methods.Len() != len(requests) {
		t.Errorf("the contract has %d methods, here are %d", methods.Len(), len(requests))
	}
	for i := range methods.Len() {
		m := methods.Get(i)
		name := string(m.Name())
		t.Run(name, func(t *testing.T) {
			checkRequest(t, filled(t, m.Input()), requests[name])
			checkResponse(t, filled(t, m.Output()), responses[name])
		})
	}
}

func checkRequest(t *testing.T, want proto.Message, ours interface{ encode() encoder }) {
	if ours == nil {
		if n := want.ProtoReflect().Descriptor().Fields().Len(); n != 0 {
			t.Errorf("the request has %d fields and is sent empty", n)
		}
		return
	}
	set(t, reflect.ValueOf(ours).Elem(), want.ProtoReflect())
	got := want.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(ours.encode(), got); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, want) {
		t.Errorf("sent %v\nwant %v", got, want)
	}
}

func checkResponse(t *testing.T, sent proto.Message, ours interface{ decode([]byte) error }) {
	if ours == nil {
		if n := sent.ProtoReflect().Descriptor().Fields().Len(); n != 0 {
			t.Errorf("the response has %d fields and is not read", n)
		}
		return
	}
	b, err := proto.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	want := reflect.New(reflect.TypeOf(ours).Elem())
	set(t, want.Elem(), sent.ProtoReflect())
	// A newer agent's fields, of every wire type: 100 varint, 101 fixed64, 102 bytes, 103 fixed32.
	b = append(b, 0xa0, 0x06, 0x7f, 0xa9, 0x06, 1, 2, 3, 4, 5, 6, 7, 8, 0xb2, 0x06, 1, 'x', 0xbd, 0x06, 1, 2, 3, 4)
	if err := ours.decode(b); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(ours, want.Interface()) {
		t.Errorf("read %+v\nwant %+v", ours, want.Interface())
	}
}

// filled is a message with every field set to a value of its own.
func filled(t *testing.T, d protoreflect.MessageDescriptor) proto.Message {
	mt, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		t.Fatal(err)
	}
	m := mt.New()
	n := 0
	fill(t, m, &n)
	return m.Interface()
}

func fill(t *testing.T, m protoreflect.Message, n *int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsList() && f.Kind() == protoreflect.MessageKind:
			for range 2 {
				fill(t, m.Mutable(f).List().AppendMutable().Message(), n)
			}
		case f.IsList():
			for range 2 {
				m.Mutable(f).List().Append(scalar(t, f, n))
			}
		case f.Kind() == protoreflect.MessageKind:
			fill(t, m.Mutable(f).Message(), n)
		default:
			m.Set(f, scalar(t, f, n))
		}
	}
}

func scalar(t *testing.T, f protoreflect.FieldDescriptor, n *int) protoreflect.Value {
	*n++
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(fmt.Sprintf("%s %d", f.Name(), *n))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(*n) << 20) // several bytes as a varint
	}
	t.Fatalf("%s: no value for a %s", f.FullName(), f.Kind())
	return protoreflect.Value{}
}

// set copies a generated message into one of our structs, by the fields' names.
func set(t *testing.T, to reflect.Value, from protoreflect.Message) {
	fields := from.Descriptor().Fields()
	if to.NumField() != fields.Len() {
		t.Errorf("%s has %d fields, %s %d", from.Descriptor().Name(), fields.Len(), to.Type(), to.NumField())
	}
	for i := range fields.Len() {
		f := fields.Get(i)
		name := strings.ReplaceAll(string(f.Name()), "_", "")
		target := to.FieldByNameFunc(func(s string) bool { return strings.EqualFold(s, name) })
		if !target.IsValid() {
			t.Fatalf("%s has no field for %s", to.Type(), f.FullName())
		}
		switch {
		case f.IsList():
			list := from.Get(f).List()
			target.Set(reflect.MakeSlice(target.Type(), list.Len(), list.Len()))
			for j := range list.Len() {
				setOne(t, target.Index(j), f, list.Get(j))
			}
		default:
			setOne(t, target, f, from.Get(f))
		}
	}
}

func setOne(t *testing.T, to reflect.Value, f protoreflect.FieldDescriptor, v protoreflect.Value) {
	if f.Kind() == protoreflect.MessageKind {
		set(t, to, v.Message())
		return
	}
	to.Set(reflect.ValueOf(v.Interface()))
}

func TestEmptyMessagesAreUnderstood(t *testing.T) {
	var got agentv1.AddRequest
	if err := proto.Unmarshal(AddRequest{}.encode(), &got); err != nil {
		t.Fatal(err)
	}
	var resp AddResponse
	if err := resp.decode(nil); err != nil || !reflect.DeepEqual(resp, AddResponse{}) {
		t.Fatalf("got %+v, %v", resp, err)
	}
}

// FuzzDecode: no bytes make the decoder fail in a way other than an error, and
// what the generated code writes is read as the generated code reads it.
func FuzzDecode(f *testing.F) {
	b, _ := proto.Marshal(&agentv1.AddResponse{Host: &agentv1.Interface{Name: "hop1", Mtu: 1500}, Addresses: []string{"10.0.0.1/32"}})
	f.Add(b)
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, b []byte) {
		var ours AddResponse
		_ = ours.decode(b) // any answer will do, as long as there is one
		var theirs agentv1.AddResponse
		if proto.Unmarshal(b, &theirs) != nil {
			return
		}
		again, _ := proto.Marshal(&theirs)
		var canonical agentv1.AddResponse
		if len(theirs.ProtoReflect().GetUnknown()) > 0 || proto.Unmarshal(again, &canonical) != nil {
			return
		}
		if err := ours.decode(again); err != nil {
			t.Fatalf("cannot read %x: %v", again, err)
		}
	})
}
