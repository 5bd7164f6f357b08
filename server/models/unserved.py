"""Why transformers' image-text architectures have no adapter; it goes for those that have got one since no longer."""

_NAMES = {
    "no adapter has been written; nothing is known to stand against one": """
        AyaVisionForConditionalGeneration Cohere2VisionForConditionalGeneration CohereCompassForConditionalGeneration
        Cosmos3EdgeForConditionalGeneration DeepseekOcr2ForConditionalGeneration DeepseekVLForConditionalGeneration
        DeepseekVLHybridForConditionalGeneration Dots3NoteForConditionalGeneration
        Ernie4_5_VLMoeForConditionalGeneration Exaone4_5_ForConditionalGeneration FastVlmForConditionalGeneration
        Glm46VForConditionalGeneration Glm4vForConditionalGeneration Glm4vMoeForConditionalGeneration
        GlmOcrForConditionalGeneration GotOcr2ForConditionalGeneration Granite4VisionForConditionalGeneration
        GraniteDoclingForConditionalGeneration HunYuanVLForConditionalGeneration
        HyperCLOVAXVisionV2ForConditionalGeneration Idefics3ForConditionalGeneration InklingForConditionalGeneration
        JanusForConditionalGeneration Kimi_K25ForConditionalGeneration LightOnOcrForConditionalGeneration
        Llama4ForConditionalGeneration LlavaNextVideoForConditionalGeneration MiniMaxM3SparseForConditionalGeneration
        Mistral3ForConditionalGeneration Mistral4ForCausalLM MistralLarge4ForConditionalGeneration
        MuseGlimmerForConditionalGeneration Ovis2ForConditionalGeneration PaddleOCRVLForConditionalGeneration
        PerceptionLMForConditionalGeneration QianfanOCRForConditionalGeneration Qwen2VLForConditionalGeneration
        Qwen3VLMoeForConditionalGeneration SmolVLMForConditionalGeneration Step3p7ForConditionalGeneration
        UnlimitedOcrForConditionalGeneration VideoLlama3ForConditionalGeneration VideoLlavaForConditionalGeneration
        VipLlavaForConditionalGeneration FuyuForCausalLM""",
    "it has layers that are not attention, and the engine's batch holds keys and values alone": """
        Glm5NextForConditionalGeneration Inkling2ForConditionalGeneration Lfm2VlForConditionalGeneration
        Lfm3VlForConditionalGeneration NemotronH_Omni_Reasoning_V3 Qwen3_5ForConditionalGeneration
        Qwen3_5MoeForConditionalGeneration Qwen4ExpForConditionalGeneration""",
    "an image's tokens see one another in both directions, and the engine's masks are causal": """
        Gemma3ForConditionalGeneration Molmo2ForConditionalGeneration PaliGemmaForConditionalGeneration
        Gemma4UnifiedForConditionalGeneration""",
    "its layers look tokens up by their ids, which vision tokens do not have": """
        Gemma3nForConditionalGeneration Gemma4ForConditionalGeneration DiffusionGemmaForBlockDiffusion""",
    "a resampler has made few tokens of an image already": """
        AriaForConditionalGeneration Blip2ForConditionalGeneration Idefics2ForConditionalGeneration
        InstructBlipForConditionalGeneration InstructBlipVideoForConditionalGeneration
        MiniCPMOcrForConditionalGeneration MiniCPMV4_6ForConditionalGeneration MiniCPMV4_7ForConditionalGeneration""",
    "it reads images by cross-attention, so a prompt has no vision tokens": """
        IdeficsForVisionText2Text MllamaForConditionalGeneration""",
    "its images are codes of a vocabulary, not features": """
        ChameleonForConditionalGeneration Emu3ForConditionalGeneration""",
    "it hears or speaks as well, which the server does not": """
        Cosmos3OmniForConditionalGeneration MuseSparkForConditionalGeneration
        Qwen2_5OmniThinkerForConditionalGeneration Qwen3OmniMoeThinkerForConditionalGeneration""",
    "an encoder reads the prompt, and the engine runs decoders alone": """
        Florence2ForConditionalGeneration Kosmos2_5ForConditionalGeneration PPFormulaNetForConditionalGeneration
        Pix2StructForConditionalGeneration T5Gemma2ForConditionalGeneration UdopForConditionalGeneration
        VisionEncoderDecoderModel""",
    "it captions images or moves robots, and does not chat": """
        BlipForConditionalGeneration EvollaForProteinText2Text GitForCausalLM Kosmos2ForConditionalGeneration
        PI0ForConditionalGeneration""",
}
REASONS = {name: reason for reason, names in _NAMES.items() for name in names.split()}
