"""What the client asks of streams."""

from covervlm.clients import streams


def test_a_stream_names_its_method_only_where_one_is_given():
    assert streams.create(["a", "b"], 10).body == {"classes": ["a", "b"], "horizon": 10}
    body = streams.create(["a", "b"], 10, method="coke", parameters={"ratio": 0.5}).body
    assert body == {"classes": ["a", "b"], "horizon": 10, "method": "coke", "parameters": {"ratio": 0.5}}
