"""Values of params.yaml that clash: every rule between values is broken once."""

from tests.rarlhf.config.edits import Edits

PROMPTS_ALONE: Edits = {
    "data.source": "file",
    "data.path": "x",
    "data.columns.text": None,
    "data.columns.prompt": "prompt",
}
HEADS: Edits = {"worth": {}}
# What clashes, and where the refusal is: keys with their values, and a part of the rule.
CLASHES: list[tuple[Edits, str]] = [
    (
        {
            "methods.decoded": {"x": {"rule": "prompted", "of": "sft"}},
            "prompts.chat_template": True,
        },
        "methods.decoded.x = {'of': 'sft', 'rule': 'prompted'}, prompts.chat_template = True: a text before the",
    ),
    (
        {"methods.headed": {"x": {"rule": "nado", "of": "sft", "head": "worth"}}},
        "methods.headed.x = {'head': 'worth', 'of': 'sft', 'rule': 'nado'}: head = worth: name one of methods.heads (",
    ),
    (
        {"methods.headed": {"x": {"rule": "rect", "of": "worth", "head": "worth"}}, "methods.heads": HEADS},
        "methods.headed.x = {'head': 'worth', 'of': 'worth', 'rule': 'rect'}: of = worth: name one of",
    ),
    (
        {"methods.ppo": {"rlhf": {"measure": "none"}}, "methods.heads": {"rlhf": {}}},
        "methods.ppo = {'rlhf': {'measure': 'none'}}, methods.heads = {'rlhf': {}}: rlhf: give each method one name",
    ),
    ({"methods.heads": {"sft": {}}}, "methods.heads = {'sft': {}}: another stage writes models/sft; give it another"),
    (
        {"methods.heads": {"worth": {"micro_batch_size": 3}}},
        "methods.heads.worth = {'micro_batch_size': 3}, head.batch_size = 256, head.micro_batch_size = 256: micro",
    ),
    (
        {"methods.heads": {"worth": {"heads": 3}}},
        "methods.heads.worth = {'heads': 3}, head.heads = 2, model.scratch.width = 64: a head is as wide as the model:",
    ),
    (
        {"methods.heads": {"worth": {"quantile": 0}}},
        "methods.heads.worth = {'quantile': 0}, head.quantile = 0.5: every score is at or above the quantile 0, so all",
    ),
    (
        {"judge.preference.source": "chat", "judge.preference.against": "best"},
        "judge.preference.against = 'best': name the method that the others are compared with, one of base, sft,",
    ),
    (
        {"judge.preference.source": "chat", "methods.start": ["sft"]}
        | {f"methods.{group}": {} for group in ("ppo", "fit", "headed")},
        "judge.preference.source = 'chat', judge.preference.against = 'sft': there is no other method whose answers",
    ),
    (
        {"judge.preference.instruction": "{prompt} {first} {first}"},
        "judge.preference.instruction = '{prompt} {first} {first}': it must hold {prompt}, {first}, {second},",
    ),
    ({"utility.tasks": ["boolq", "boolq"]}, "utility.tasks = ['boolq', 'boolq']: a task is named twice"),
    (
        {"utility.files": {"boolq": "boolq.jsonl"}},
        "utility.files = {'boolq': 'boolq.jsonl'}, utility.tasks = []: files are given for a task that is not",
    ),
    (
        {"utility.fewshot": {"boolq": 5}},
        "utility.fewshot = {'boolq': 5}, utility.tasks = []: examples are given for a task that is not",
    ),
    (
        {
            "utility.classification.rows": 10,
            "data.columns.label": None,
            "data.source": "hub",
            "data.name": "x/y",
            "data.revision": "a",
        },
        "utility.classification.rows = 10, data.columns.label = None: the classifier is fitted on labels: name their",
    ),
    ({"seeds": [1, 1]}, "seeds = [1, 1]: seeds must be distinct"),
    ({"methods.start": ["sft", "sft"]}, "methods.start = ['sft', 'sft']: methods must be distinct"),
    (
        {"methods.start": [], "methods.ppo": {}, "methods.fit": {}, "methods.headed": {}},
        "methods.start = [], methods.ppo = {}, methods.fit = {}: name at least one method",
    ),
    (
        {"methods.ppo": {"rlhf": {"alpha": 0.5}}},
        "methods.ppo = {'rlhf': {'alpha': 0.5}}: rlhf is plain RLHF: give it measure: none",
    ),
    (
        {"methods.ppo": {"reward": {}}, "methods.fit": {}},
        "methods.ppo = {'reward': {}}: another stage writes models/reward; give it another name",
    ),
    (
        {"methods.ppo": {"twice": {}}, "methods.fit": {"twice": {"measure": "none"}}},
        "methods.ppo = {'twice': {}}, methods.fit = {'twice': {'measure': 'none'}}: twice: give each method one name",
    ),
    (
        {"methods.fit": {"best": {}}},
        "methods.fit.best = {}: a fit has measure none, or cvar_ru or mean_cvar with of: score and eta: plan or a",
    ),
    (
        {"methods.fit": {"best": {"measure": "cvar_ru", "of": "score"}}},
        "methods.fit.best = {'measure': 'cvar_ru', 'of': 'score'}: a fit has measure none, or cvar_ru or mean_cvar",
    ),
    (
        {"methods.ppo": {"tail": {"of": "score"}}},
        "methods.ppo.tail = {'of': 'score'}: measure cvar is of the return, since dropped episodes leave the batch",
    ),
    (
        {"methods.ppo": {"tail": {"measure": "cvar_ru", "eta": "plan"}}},
        "methods.ppo.tail = {'eta': 'plan', 'measure': 'cvar_ru'}: eta is planned only for measures cvar_ru and",
    ),
    (
        {"methods.ppo": {"tail": {"measure": "cvar_ru", "ranking": "random"}}},
        "methods.ppo.tail = {'measure': 'cvar_ru', 'ranking': 'random'}: a random ranking chooses the episodes that",
    ),
    (
        {"methods.ppo": {"tail": {"measure": "cvar_ru", "dropped": "pay_kl"}}},
        "methods.ppo.tail = {'dropped': 'pay_kl', 'measure': 'cvar_ru'}: only measure cvar drops episodes; set",
    ),
    (
        {"methods.tuned": {"quark": {"by": "quark"}}, "model.scratch.context": 32, "sft.tokens": 32},
        "methods.tuned.quark = {'by': 'quark'}, prompts.tokens = 8, ppo.max_new_tokens = 24, model.scratch.context = "
        "32: a token of Quark, query and response take 33 tokens",
    ),
    (
        {
            "methods.tuned": {"quark": {"by": "quark"}},
            "methods.decoded": {"less": {"rule": "self_debias", "of": "quark"}},
        },
        "methods.decoded.less = {'of': 'quark', 'rule': 'self_debias'}: quark is by quark, whose model this rule would",
    ),
    (
        {
            "methods.tuned": {"quark": {"by": "quark"}},
            "methods.headed": {"steered": {"rule": "rect", "of": "quark", "head": "good"}},
            "methods.heads": {"good": {}},
        },
        "methods.headed.steered = {'head': 'good', 'of': 'quark', 'rule': 'rect'}: quark is by quark, whose model this",
    ),
    (
        {"methods.ppo": {"hard": {"hard_share": 0.5}}, "ppo.responses": 2},
        "methods.ppo.hard = {'hard_share': 0.5}, ppo.responses = 2: hard prompts are drawn and weighted one for each",
    ),
    (
        {"methods.ppo": {"late": {"warmup": 80}}},
        "methods.ppo.late = {'warmup': 80}, ppo.iterations = 80: the schedule reaches its end",
    ),
    (
        {"methods.ppo": {"hard": {"measure": "evar", "hard_share": 0.5}}},
        "methods.ppo.hard = {'hard_share': 0.5, 'measure': 'evar'}: hard prompts are drawn more often only for",
    ),
    (
        {"evaluate.tail_threshold": -2.5},
        "evaluate.tail_quantile = 0.1, evaluate.tail_threshold = -2.5: set one of the two",
    ),
    ({"evaluate.tail_quantile": None}, "evaluate.tail_quantile = None, evaluate.tail_threshold = None: set one"),
    ({"data.source": "file"}, "data.source = 'file', data.path = None: source file needs the folder"),
    (
        {"data.source": "hub", "data.name": "a/b"},
        "data.source = 'hub', data.name = 'a/b', data.revision = None: source hub needs a name and a revision",
    ),
    (
        {"data.test_share": 0.2},
        "data.source = 'generator', data.test_share = 0.2: source generator makes test rows of its own",
    ),
    (
        {"data.source": "hub", "data.name": "a/b", "data.revision": "c", "data.splits.test": None},
        "data.splits.test = None, data.test_share = None: set one of the two, and the other to null",
    ),
    (
        {"data.source": "hub", "data.name": "a/b", "data.revision": "c", "data.test_share": 0.2},
        "data.splits.test = 'test', data.test_share = 0.2: set one of the two, and the other to null",
    ),
    ({"data.watch": ["path"]}, "data.source = 'generator', data.watch = ['path']: only the files of source file"),
    (
        {"data.source": "file", "data.path": "x", "data.watch": ["path", "path"]},
        "data.watch = ['path', 'path']: path is named twice",
    ),
    (
        {"data.train_rows": 50, "data.second_scorer_rows": 50},
        "data.train_rows = 50, data.second_scorer_rows = 50: no training rows are left",
    ),
    ({"data.test_rows": None}, "data.source = 'generator', data.train_rows = 14000, data.test_rows = None: source"),
    (
        {"prompts.train": 11801},  # 14,000 rows less 2,000 leave 12,000, of which 200 are for validation
        "prompts.train = 11801, prompts.validation = 200, data.train_rows = 14000, data.second_scorer_rows = 2000: "
        "12,001 queries are needed, but fewer training rows are left",
    ),
    ({"prompts.test": 2001}, "prompts.test = 2001, data.test_rows = 2000: more test queries than test rows"),
    (
        {"model.quantization": "int8"},
        "model.quantization = 'int8', model.adapter = 'none': full training needs float32 weights",
    ),
    (
        {"model.dtype": "bfloat16"},
        "model.dtype = 'bfloat16', model.adapter = 'none': full training needs float32 weights",
    ),
    (
        {"runtime.sharding": "full", "model.adapter": "lora", "model.quantization": "int8"},
        "runtime.sharding = 'full', model.adapter = 'lora': only weights that are trained are divided, and an",
    ),
    (
        {"runtime.sharding": "full", "runtime.decode": "compiled"},
        "runtime.sharding = 'full', runtime.decode = 'compiled': compiled passes need weights that stay where they are",
    ),
    (
        {"runtime.sharding": "full", "ppo.micro_batch_size": "auto"},
        "runtime.sharding = 'full', ppo.micro_batch_size = 'auto': auto tries sizes in each process alone",
    ),
    (
        {"data.columns.text": None},
        "data.columns.text = None, data.columns.prompt = None: rows need a text or a prompt",
    ),
    (
        {"data.columns.label": None},
        "data.columns.label = None, reward.source = 'scratch': a classifier is trained on labels",
    ),
    (
        PROMPTS_ALONE,
        "data.columns.text = None, model.source = 'scratch': SFT and the classifier need whole texts, "
        "and the data has prompts alone: give a folder",
    ),
    (
        PROMPTS_ALONE,
        "data.columns.text = None, reward.source = 'scratch': SFT and the classifier need whole texts, "
        "and the data has prompts alone: give a folder",
    ),
    (
        PROMPTS_ALONE,
        "data.columns.text = None, sft.epochs = 2.0: SFT and the classifier need whole texts, and",
    ),
    (
        {"data.columns.label": None, "data.wanted_share.test": 0.5},
        "data.columns.label = None, data.wanted_share.train = None, data.wanted_share.test = 0.5: a share",
    ),
    (
        {"judge.second_scorer.source": "python:own"},
        "judge.second_scorer.source = 'python:own': a function is written python:package.module:function",
    ),
    (
        {"judge.second_scorer.source": "python:own:f"},
        "reward.source = 'scratch', reward.others = [], judge.second_scorer.source = 'python:own:f', "
        "reward.watch = []: a Python scorer's code is checked in every repro",
    ),
    (
        {"judge.second_scorer.source": "own", "reward.source": "own"},
        "judge.second_scorer.source = 'own', reward.source = 'own', reward.others = []: training sees this scorer",
    ),
    (
        {"data.second_scorer_rows": 0},
        "judge.second_scorer.source = 'scratch', data.second_scorer_rows = 0: the second scorer learns from rows that",
    ),
    (
        {"judge.toxicity.scorer": "second_scorer", "judge.second_scorer.source": "none"},
        "judge.toxicity.scorer = 'second_scorer', judge.second_scorer.source = 'none': there is no second scorer",
    ),
    (
        {
            "judge.toxicity.scorer": "reward",
            "reward.others": [{"source": "a/b", "weight": 1.0, "label": 0, "output": "logit", "max_length": 64}],
        },
        "judge.toxicity.scorer = 'reward', reward.others = [{'source': 'a/b', 'weight': 1.0, 'label': 0, "
        "'output': 'logit', 'max_length': 64}]: a sum of several scorers is no probability",
    ),
    (
        {"judge.second_scorer.scratch.heads": 5},
        "judge.second_scorer.scratch.width = 96, judge.second_scorer.scratch.heads = 5: heads must divide width",
    ),
    (
        {"reward.source": "python:own", "reward.watch": ["code"]},
        "reward.source = 'python:own', reward.others = []: a function is written python:package.module:function",
    ),
    (
        {"reward.others": [{"source": "a/b", "weight": 1, "label": 0}]},
        "reward.others = [{'source': 'a/b', 'weight': 1.0, 'label': 0}]: a classifier needs label, output",
    ),
    (
        {"reward.others": [{"source": "python:own:f", "weight": 1, "label": 0}], "reward.watch": ["code"]},
        "reward.others = [{'source': 'python:own:f', 'weight': 1.0, 'label': 0}]: a function takes only source",
    ),
    (
        {"reward.others": [{"source": "scratch", "weight": 1}]},
        "reward.others = [{'source': 'scratch', 'weight': 1.0}]: only reward.source can be scratch",
    ),
    (
        {"reward.source": "python:own:f"},
        "reward.source = 'python:own:f', reward.others = [], reward.watch = []: a Python scorer's code is checked in "
        "every repro: set reward.watch to [code]",
    ),
    (
        {"reward.watch": ["code"]},
        "reward.source = 'scratch', reward.others = [], reward.watch = ['code']: no scorer is a Python function of",
    ),
    (
        {"reward.source": "python:own:f", "reward.watch": ["code", "code"]},
        "reward.watch = ['code', 'code']: code is named twice",
    ),
    ({"model.scratch.heads": 3}, "model.scratch.width = 64, model.scratch.heads = 3: heads must divide width"),
    ({"reward.scratch.heads": 5}, "reward.scratch.width = 64, reward.scratch.heads = 5: heads must divide width"),
    (
        {"prompts.tokens": 41},
        "prompts.tokens = 41, ppo.max_new_tokens = 24, model.scratch.context = 64: query and response take 65 tokens",
    ),
    ({"sft.tokens": 65}, "sft.tokens = 65, model.scratch.context = 64: SFT texts exceed the context"),
    ({"sft.micro_batch_size": 48}, "sft.batch_size = 64, sft.micro_batch_size = 48: micro_batch_size must divide"),
    ({"kl.coef": 0.0}, "kl.coef = 0.0, kl.controller = 'pid': pid multiplies the coefficient"),
    ({"ppo.responses": 3}, "ppo.batch_size = 128, ppo.responses = 3: responses must divide batch_size"),
    (
        {"ppo.baseline": "query", "ppo.responses": 1},
        "ppo.baseline = 'query', ppo.responses = 1: the baseline is the mean of a query's other responses",
    ),
    (
        {"ppo.baseline": "query", "ppo.responses": 4, "methods.ppo": {"hard": {"measure": "cvar", "ranking": "value"}}},
        "ppo.baseline = 'query', methods.ppo = {'hard': {'measure': 'cvar', 'ranking': 'value'}}: hard: rankings "
        "lambda_return and value, and hard_share, need a critic",
    ),
    (
        {"ppo.baseline": "query", "ppo.responses": 4, "methods.ppo": {"h": {"measure": "cvar", "hard_share": 0.5}}},
        "ppo.baseline = 'query', methods.ppo = {'h': {'hard_share': 0.5, 'measure': 'cvar'}}: h: rankings",
    ),
    (
        {"ppo.baseline": "query", "ppo.responses": 4, "methods.ppo": {"e": {"measure": "evar", "critic": "all"}}},
        "ppo.baseline = 'query', methods.ppo = {'e': {'critic': 'all', 'measure': 'evar'}}: e: critic all asks for a",
    ),
    ({"ppo.mini_batch_size": 96}, "ppo.batch_size = 128, ppo.mini_batch_size = 96: mini_batch_size must divide"),
    (
        {"ppo.micro_batch_size": 48},
        "ppo.mini_batch_size = 128, ppo.micro_batch_size = 48: micro_batch_size must divide",
    ),
    ({"ppo.min_new_tokens": 25}, "ppo.min_new_tokens = 25, ppo.max_new_tokens = 24: min exceeds max"),
    (
        {"ppo.min_counts_query": True, "prompts.tokens": 8, "ppo.min_new_tokens": 33},  # at most 8 + 24
        "ppo.min_new_tokens = 33, ppo.max_new_tokens = 24: min exceeds max",
    ),
    (
        {"risk.measure": "evar", "risk.hard_share": 0.5},
        "risk.hard_share = 0.5, risk.measure = 'evar': hard prompts are drawn more often only for measure cvar",
    ),
    (
        {"risk.hard_share": 0.5, "ppo.responses": 2},
        "risk.hard_share = 0.5, ppo.responses = 2: hard prompts are drawn and weighted one for each response; set",
    ),
    (
        {"risk.of": "score"},
        "risk.of = 'score', risk.measure = 'cvar': measure cvar is of the return, since dropped episodes leave the "
        "batch with their KL penalty; set of to return, or measure to cvar_ru",
    ),
    (
        {"risk.measure": "cvar_ru", "risk.eta": "plan"},
        "risk.eta = 'plan', risk.measure = 'cvar_ru', risk.of = 'return': eta is planned only for measures cvar_ru",
    ),
    (
        {"risk.measure": "evar", "risk.of": "score", "risk.eta": "plan"},
        "risk.eta = 'plan', risk.measure = 'evar', risk.of = 'score': eta is planned only for measures cvar_ru and",
    ),
    (
        {"risk.measure": "cvar_ru", "risk.ranking": "random"},
        "risk.ranking = 'random', risk.measure = 'cvar_ru': a random ranking chooses the episodes that measure cvar",
    ),
    (
        {"risk.measure": "cvar_ru", "risk.dropped": "pay_kl"},
        "risk.dropped = 'pay_kl', risk.measure = 'cvar_ru': only measure cvar drops episodes; set dropped to free",
    ),
    (
        {"plan.train.prompts": 3201},
        "plan.train.prompts = 3201, prompts.train = 3200: more prompts than there are",
    ),
    ({"plan.test.prompts": 601}, "plan.test.prompts = 601, prompts.test = 600: more prompts than there are"),
    (
        {"plan.kl": [1.0, 3.0], "plan.train.samples": 20},  # log 20 = 2.996
        "plan.kl = [1.0, 3.0], plan.train.samples = 20: weights of that many answers reach a KL of log(samples) = 3 at",
    ),
    (
        {"fit.micro_batch_size": 96},
        "fit.batch_size = 256, fit.micro_batch_size = 96: micro_batch_size must divide batch_size",
    ),
    ({"prompts.train": 127}, "prompts.train = 127, ppo.batch_size = 128: fewer queries than one batch"),
    (
        {"risk.warmup": 64, "ppo.iterations": 80, "risk.rho": 0.8},  # ceil(.8 x 80) = 64
        "risk.warmup = 64, risk.rho = 0.8, ppo.iterations = 80: the schedule reaches its end at iteration "
        "ceil(rho * iterations) = 64, before the warmup is over: raise rho or lower warmup",
    ),
]
