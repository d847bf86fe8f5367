import pytest

from pipeline.serving.errors import ModelsConfigError
from pipeline.serving.models_config import ServedModel, parse, parse_message, render

MODELS = (
    ServedModel("gyl_rl_a", "/models/gyl_rl_a", (3, 12)),
    ServedModel("gyl_rl_b", "/models/with space/é", (1,)),
)


def test_what_is_rendered_is_parsed_back():
    assert parse(render(MODELS)) == MODELS


def test_text_says_specific_versions_and_platform():
    entry = parse_message(render(MODELS[:1])).model_config_list.config[0]
    assert entry.model_platform == "tensorflow"
    assert list(entry.model_version_policy.specific.versions) == [3, 12]


def test_no_models_is_still_a_model_config_list():
    assert parse_message(render(())).WhichOneof("config") == "model_config_list"
    assert parse(render(())) == ()


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([ServedModel("m", "/m", ())], "'m': expected at least one version, found none"),
        ([ServedModel("m", "models/m", (1,))], "'m': expected an absolute base path, found 'models/m'"),
        ([ServedModel("", "/m", (1,))], "expected a model name, found none for /m"),
        ([ServedModel("m", "/m", (1,)), ServedModel("m", "/n", (1,))], "expected each model once, found 'm' 2 times"),
    ],
)
def test_what_tf_serving_would_choke_on_is_not_rendered(models, message):
    with pytest.raises(ModelsConfigError, match=f"^models.config: .*{message}$"):
        render(models)


def test_a_broken_text_says_where():
    with pytest.raises(ModelsConfigError, match="expected text of a ModelServerConfig message, found at 2:3"):
        parse("model_config_list {\n  nonsense: 1\n}")


def test_other_policies_name_no_versions():
    with pytest.raises(ModelsConfigError, match="model 'm': expected a list of specific versions, found latest"):
        parse('model_config_list { config { name: "m" base_path: "/m" model_version_policy { latest {} } } }')
